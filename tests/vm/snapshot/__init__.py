"""Snapshots: create, export, import, the same content twice."""
