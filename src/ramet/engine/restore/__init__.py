"""Restores: a guest from a capture, in a new instance or in the place of one."""
