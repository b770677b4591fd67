"""Download and verify published data sets."""
