"""The files of a library, below `images/` of a home: only this file knows their names.

`blobs/` has the devices, named by digest; `manifests/` a record per image, `names/` one per name, `layers/`
the blob of each shared layer, by diff id. `locks/` has a lock per image that is being built.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import ClassVar

import msgspec

from ramet.errors import RametError
from ramet.images.erofs.blob import BLOCK_BYTES, mark
from ramet.images.library.records import blob_name
from ramet.model.record import Base
from ramet.system.files import filesystem_errors, open_regular


class Places:
    """The directories of a library; they are made when they are first needed."""

    MAKING: ClassVar = ".making-"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.manifests = root / "manifests"
        self.names = root / "names"
        self.layers = root / "layers"
        self.locks = root / "locks"

    def make(self) -> None:
        """Make the directories. Raises `FilesystemError`."""
        for directory in (self.root, self.blobs, self.manifests, self.names, self.layers, self.locks):
            with filesystem_errors("make", directory):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def manifest(self, digest: str) -> Path:
        """Return the place of an image's record."""
        return self.manifests / f"{digest.removeprefix('sha256:')}.json"

    def name(self, name: str) -> Path:
        """Return the place of a name's record: the name may have any characters and length."""
        return self.names / f"{hashlib.sha256(os.fsencode(name)).hexdigest()}.json"

    def layer(self, diff_id: str) -> Path:
        """Return the place of the note which blob has a layer."""
        return self.layers / f"{hashlib.sha256(diff_id.encode()).hexdigest()}.json"

    def lock(self, what: str) -> Path:
        """Return the lock of an image that is being built or fetched."""
        return self.locks / hashlib.sha256(os.fsencode(what)).hexdigest()

    def blob_of_layer(self, diff_id: str) -> Base | None:
        """Return the blob of a layer; None when there is none, or one that is damaged."""
        try:
            base = msgspec.json.decode(self.layer(diff_id).read_bytes(), type=Base)
        except (OSError, msgspec.MsgspecError):
            return None
        return base if self.why_damaged(base) is None else None

    def why_damaged(self, base: Base) -> str | None:
        """Tell what is wrong with a device's file by its size and its mark; None when it is whole."""
        return why_damaged(self.blobs / blob_name(base.digest), base)


def why_damaged(path: Path, base: Base) -> str | None:
    """Tell what is wrong with a device's file by its size and its mark; None when it is whole."""
    try:
        with open_regular(path) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
            last = os.pread(descriptor, BLOCK_BYTES, base.blocks * BLOCK_BYTES)
    except FileNotFoundError:
        return "is missing"
    except (OSError, RametError) as error:
        return f"can't be read: {error}"
    if size_bytes != (base.blocks + 1) * BLOCK_BYTES:
        return f"has {size_bytes} bytes instead of {(base.blocks + 1) * BLOCK_BYTES}"
    return None if last == mark(base.blocks, base.digest) else "has the content of another device"
