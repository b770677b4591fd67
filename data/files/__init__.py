"""File formats of images, masks, flow and lists."""
