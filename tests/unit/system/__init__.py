"""The operating system: processes, files, locks, limits, KVM, cgroups."""
