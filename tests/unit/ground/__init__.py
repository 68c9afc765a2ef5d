"""Modules that know nothing of VMs: programs, text, concurrency."""
