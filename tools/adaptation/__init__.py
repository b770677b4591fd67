"""Follow the object of a first mask: the program is tools/adapt.py."""
