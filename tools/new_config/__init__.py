"""Write a config for a person's own data: look at the files, choose a backbone, fill in a template of configs/own."""
