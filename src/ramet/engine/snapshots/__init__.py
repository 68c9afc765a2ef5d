"""Snapshots: named captures, listed, created, verified, compressed, exported and imported."""
