"""Read, write and list files: images, masks, flow, lists."""
