"""Data disks: mounted, forked, shortened, with a database on them."""
