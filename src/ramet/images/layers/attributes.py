"""Extended attributes that a guest may get from a layer.

A layer's tree becomes the lower directory of an overlay, and overlayfs obeys its own attributes there. They
are dropped, as are those that EROFS can't hold. Sources: Documentation/filesystems/overlayfs.rst ("trusted.
overlay.", and "user.overlay." with the option userxattr); `erofs_fs.h` (name indexes).
"""

from __future__ import annotations

from typing import Final

from ramet.images.layers.tar_entries import HARD_LINK, TarEntry

_OBEYED: Final = (b"trusted.overlay.", b"user.overlay.")
_HELD: Final = (b"user.", b"trusted.", b"security.")
_HELD_NAMES: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})


def is_kept(name: bytes) -> bool:
    """Tell whether an attribute of that name reaches the guest."""
    return name in _HELD_NAMES or (name.startswith(_HELD) and not name.startswith(_OBEYED))


def kept_xattrs(entry: TarEntry) -> dict[bytes, bytes]:
    """Return the entry's attributes that reach the guest."""
    if entry.file_type == HARD_LINK or not entry.xattrs:
        return {}
    return {name: value for name, value in entry.xattrs.items() if is_kept(name)}
