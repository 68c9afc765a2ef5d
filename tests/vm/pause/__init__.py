"""Pause and resume, and how long a capture pauses a guest."""
