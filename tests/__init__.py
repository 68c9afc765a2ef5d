"""Tests: README.md says how they are run and where each is."""
