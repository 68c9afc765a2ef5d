"""ramet killed at every point of every operation."""
