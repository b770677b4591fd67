"""mtsp: multi-task fine-tuning that remembers where it started."""

__version__ = "0.2.0"
