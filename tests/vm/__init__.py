"""Behaviours of real guests through `ramet.Host`, a folder each."""
