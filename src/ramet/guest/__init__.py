"""The guest's agent and how the host talks to it. See README.md of this room."""
