"""Compressed memory of captures, and what else is done meanwhile."""
