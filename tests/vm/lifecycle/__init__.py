"""Start, stop, reboot, crash, remove: the life of one instance."""
