"""Facts about one VMM: its entry in the record, its console's last words, its disks' errors."""
