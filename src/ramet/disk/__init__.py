"""The files of an instance beside its memory. See README.md."""
