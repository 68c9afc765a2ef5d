"""The words of the field, as types. No I/O. See README.md."""
