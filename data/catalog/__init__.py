"""Published data sets: where they are, what they hold, download and verification."""
