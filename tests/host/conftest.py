from tests.disk.loop_filesystems import full, xfs

__all__ = ["full", "xfs"]
