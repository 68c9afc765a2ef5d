"""Lints and tools of this repository: generated files, markers, tiers, errors that are swallowed."""
