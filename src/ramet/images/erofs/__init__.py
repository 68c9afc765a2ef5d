"""Uncompressed EROFS images, written by ramet itself: byte-for-byte reproducible, ready for DAX."""
