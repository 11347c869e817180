"""Image sources, their cache on disk, and the Lightning data modules that configs name by class_path."""

if __name__ != "degrain.data":
    raise ImportError(f"{__name__}: import degrain.data instead, or every class would exist twice")
