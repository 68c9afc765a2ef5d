"""Rewind: a running instance goes back to one of its snapshots."""
