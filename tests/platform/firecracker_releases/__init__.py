"""Other releases of Firecracker."""
