"""Published weights: load them into our networks, strictly."""
