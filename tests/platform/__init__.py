"""Other machines, users, filesystems, event loops and releases."""
