"""mtsp: multi-task fine-tuning that remembers where it started."""

__version__ = "0.1.0"
