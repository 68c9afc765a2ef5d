"""The adapters of hypervisors, one per hypervisor. See README.md."""
