"""Exec: commands in a guest, their time limits, their ports."""
