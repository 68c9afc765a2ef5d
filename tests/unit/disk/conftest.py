from tests.support.loop_filesystems import full, xfs

__all__ = ["full", "xfs"]
