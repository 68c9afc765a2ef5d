"""Firecracker's network, balloon and entropy devices."""
