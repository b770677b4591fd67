"""Parts of tools/adapt.py, which follows the objects that the mask of a video's first frame shows."""
