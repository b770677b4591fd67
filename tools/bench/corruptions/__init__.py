"""Damage files of every format that is read, and count what the readers make of them."""
