"""Image encoders of any library, as feature maps at known strides."""
