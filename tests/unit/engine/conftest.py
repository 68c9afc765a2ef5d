from tests.support.loop_filesystems import full

__all__ = ["full"]
