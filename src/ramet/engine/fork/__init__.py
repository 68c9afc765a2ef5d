"""Forks: one call, its forks' records, their receipts and spans."""
