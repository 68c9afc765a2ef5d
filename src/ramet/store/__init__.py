"""The records of a home. See README.md."""
