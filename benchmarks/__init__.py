"""Programs that measure ramet, each by itself; tests use parts of them."""
