"""The guest's agent as the engine uses it: lease a connection, verify the guest's identity."""
