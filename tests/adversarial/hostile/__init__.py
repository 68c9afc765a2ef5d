"""Guests whose root is an enemy (I8)."""
