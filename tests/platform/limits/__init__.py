"""Limits on processes, threads and file sizes."""
