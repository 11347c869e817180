"""degrain's mathematics, networks and Lightning modules. Imports go one way: mathematics <- networks <- modules."""

if __name__ != "degrain.models":
    raise ImportError(f"{__name__}: import degrain.models instead, or every class would exist twice")
