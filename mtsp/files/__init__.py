"""Write and read files: atomic writes, locks, saved tensors; also palettes and progress bars."""
