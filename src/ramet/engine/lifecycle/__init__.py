"""The life of an instance: boot, power, jobs, removal, and its actual state."""
