"""The files of a library, below `images/` of a home: only this file knows their names.

`blobs/` has the devices, named by digest; `manifests/` a record per image, `names/` one per name, `layers/`
what is known of each shared layer, by diff id. `locks/` has a lock per image that is being built.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from ramet.errors import RametError
from ramet.images.erofs.blob import BLOCK_BYTES, mark
from ramet.images.library.records import FORMAT, LayerNote, blob_name
from ramet.model.record import Base
from ramet.system.files import filesystem_errors, open_regular
from ramet.units import MIB

PUBLISHED_NS: Final = 0
"""The time of change of all published devices, in nanoseconds since 1970."""
_READ_BYTES: Final = 1 * MIB
_SHA256: Final = "sha256:"


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
        self.names_lock = root / "names.lock"

    @property
    def directories(self) -> tuple[Path, ...]:
        """All directories, the root first."""
        return (self.root, self.blobs, self.manifests, self.names, self.layers, self.locks)

    def make(self) -> None:
        """Make the directories. Raises `FilesystemError`."""
        for directory in self.directories:
            with filesystem_errors("make", directory):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def manifest(self, digest: str) -> Path:
        """Return the place of an image's record."""
        return self.manifests / f"{manifest_stem(digest)}.json"

    def name(self, name: str, platform: str = "") -> Path:
        """Return the place of a name's record: the name may have any characters and length."""
        key = "\0".join((name, platform)) if platform else name
        return self.names / f"{_hashed(key)}.json"

    def layer(self, diff_id: str) -> Path:
        """Return the place of the note about a layer."""
        return self.layers / f"{_hashed(diff_id)}.json"

    def entries(self, diff_id: str) -> Path:
        """Return the place of a layer's entries."""
        return self.layers / f"{_hashed(diff_id)}.entries"

    def small(self, diff_id: str) -> Path:
        """Return the place of a layer's small files."""
        return self.layers / f"{_hashed(diff_id)}.small"

    def lock(self, what: str) -> Path:
        """Return the lock of an image that is being built or fetched."""
        return self.locks / _hashed(what)

    def note(self, diff_id: str) -> LayerNote | None:
        """Return the note about a layer whose blob is whole; None when there is none."""
        try:
            note = msgspec.json.decode(self.layer(diff_id).read_bytes(), type=LayerNote)
        except (OSError, msgspec.MsgspecError):
            return None
        if note.format != FORMAT or note.diff_id != diff_id:
            return None
        return note if self.why_damaged(note.base) is None else None

    def blob(self, base: Base) -> Path:
        """Return the file of a device."""
        return self.blobs / blob_name(base.digest)

    def why_damaged(self, base: Base, *, reads_all: bool = False) -> str | None:
        """Tell what is wrong with a device's file; None when it is whole.

        A file that was written to since it was published is doubtful: it is read, as with `reads_all`.
        """
        path = self.blob(base)
        with suppress(OSError):  # a file that isn't there, or isn't ours to touch, is looked at below
            is_doubtful = path.lstat().st_mtime_ns != PUBLISHED_NS
            if (reads_all or is_doubtful) and (why := why_damaged(path, base, reads_all=True)) is not None:
                return why
            if is_doubtful:
                set_published(path)
        return why_damaged(path, base)


def set_published(path: Path) -> None:
    """Give a file the time of change that published devices have: a later write gives it another."""
    os.utime(path, ns=(PUBLISHED_NS, PUBLISHED_NS))


def manifest_stem(digest: str) -> str:
    """Return the name of an image's record without `.json`: the digits, for sha512 with its name."""
    return digest.removeprefix(_SHA256).replace(":", "-")


def digest_of_stem(stem: str) -> str:
    """Return the digest of the image whose record has that name."""
    return stem.replace("-", ":", 1) if "-" in stem else f"{_SHA256}{stem}"


def why_damaged(path: Path, base: Base, *, reads_all: bool = False) -> str | None:
    """Tell what is wrong with a device's file by its size and its mark; None when it is whole.

    With `reads_all` its content is read and compared with its digest as well.
    """
    try:
        with open_regular(path) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
            last = os.pread(descriptor, BLOCK_BYTES, base.blocks * BLOCK_BYTES)
            if size_bytes != (base.blocks + 1) * BLOCK_BYTES:
                return f"has {size_bytes} bytes instead of {(base.blocks + 1) * BLOCK_BYTES}"
            if last != mark(base.blocks, base.digest):
                return "has the content of another device"
            if reads_all and _content_digest(descriptor, base.blocks * BLOCK_BYTES) != base.digest:
                return "has another content than its digest says"
    except FileNotFoundError:
        return "is missing"
    except (OSError, RametError) as error:
        return f"can't be read: {error}"
    return None


def _content_digest(descriptor: int, length_bytes: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while piece := os.pread(descriptor, min(_READ_BYTES, length_bytes - offset), offset):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def _hashed(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()
