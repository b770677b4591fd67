"""Know what a training step costs before it is taken, and lower it."""
