"""Names, states and data disks: no I/O."""
