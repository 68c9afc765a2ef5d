"""Recovery: what killed processes left, and owners that die."""
