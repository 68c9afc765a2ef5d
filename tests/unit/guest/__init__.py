"""The guest's agent and its protocol, without a VM."""
