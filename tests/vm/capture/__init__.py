"""Capture: the memory of a running guest, whatever happens meanwhile."""
