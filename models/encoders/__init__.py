"""Image encoders of several libraries that return feature maps at known strides."""
