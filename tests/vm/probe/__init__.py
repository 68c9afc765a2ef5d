"""The bare-metal guest `probe` in a Firecracker, without ramet."""
