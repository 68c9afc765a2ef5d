"""Container images of a home: built of their layers once, found by name, shared by all instances."""
