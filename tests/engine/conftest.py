from tests.disk.loop_filesystems import full

__all__ = ["full"]
