"""Stop and remove: nothing that a guest wrote is lost in silence."""
