"""Image sources, their cache on disk, and the Lightning data modules that configs name by class_path."""
