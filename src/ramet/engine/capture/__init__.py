"""Captures: a guest's memory, state and disks at one moment, as files."""
