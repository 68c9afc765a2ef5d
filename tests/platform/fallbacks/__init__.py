"""Filesystems without hard links, without room, or mounted anew."""
