"""Disks as files: qcow2 chains, volumes, filesystems, directory clones."""
