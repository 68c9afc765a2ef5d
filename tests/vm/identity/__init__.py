"""A fork's identity: clocks and requests in flight."""
