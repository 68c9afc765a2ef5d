"""The verbs of `ramet` on real guests."""
