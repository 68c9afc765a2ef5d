"""Standby and restore."""
