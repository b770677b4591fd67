"""Videos with object masks: DAVIS, and your own."""
