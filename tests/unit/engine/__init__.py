"""Parts of the engine that need no VM: archives, leases, timelines."""
