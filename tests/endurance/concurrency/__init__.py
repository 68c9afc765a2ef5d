"""Cancellation at every await, and many processes on one home."""
