"""The life of one instance: boot, power, jobs, removal, and its state as it is now."""
