"""The corruption hunt: random sequences over families of guests."""
