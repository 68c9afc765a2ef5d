"""Commands in a guest."""
