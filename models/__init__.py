"""degrain's mathematics, networks and Lightning modules. Imports go one way: mathematics <- networks <- modules."""
