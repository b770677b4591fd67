"""Files: atomic writes, saved weights, palettes and progress bars."""
