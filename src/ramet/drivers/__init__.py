"""One adapter for each hypervisor. See README.md."""
