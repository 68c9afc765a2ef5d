"""An image of the library as one layer again, for registries: made of its devices, the same bytes each time.

The library keeps no archives of layers, and an image that was imported of a directory never had one.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from ramet.errors import DamagedError
from ramet.images.erofs.reader import ErofsReader
from ramet.images.layers import write as tar
from ramet.images.library.records import ContainerImage
from ramet.progress import report
from ramet.system import threads
from ramet.system.files import filesystem_errors, open_regular, write_all
from ramet.system.publishing import sync

_LEVEL: Final = 4
"""Of compression: half the time of the usual 6 for 3 % more bytes."""
_BUFFER_BYTES: Final = 1 << 20
_GZIP: Final = 31


class Squashed(NamedTuple):
    """A layer in a file. Digests are `sha256:` and 64 digits."""

    digest: str
    size_bytes: int
    diff_id: str
    left_out: int
    """Files and attributes that an archive can't have: sockets, and attributes with `=` in their names."""


def squash(image: ContainerImage, path: Path) -> Squashed:
    """Write an image's files as a compressed layer into a new file. Blocks; the file is synced.

    Raises `DamagedError` for an image that isn't whole, `FilesystemError`; the file is of no use then.
    """
    with ExitStack() as files, filesystem_errors("write", path):
        devices = []
        for base in image.bases:
            with filesystem_errors("read", image.path_of(base)):
                devices.append(files.enter_context(open_regular(image.path_of(base))))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        output = os.open(path, flags, 0o600)
        files.callback(os.close, output)
        packed = _Packed(output)
        left_out = _write(ErofsReader(*devices), packed)
        packed.finish()
        sync(output)
    return Squashed(packed.digest, packed.size_bytes, packed.diff_id, left_out)


def _write(reader: ErofsReader, packed: _Packed) -> int:
    left_out = 0
    first_names: dict[int, bytes] = {}
    for number, (path, file) in enumerate(reader.walk()):
        threads.check_cancelled()
        report("packing the image", number, reader.inodes, unit="files")
        kind = stat.S_IFMT(file.mode)
        if not tar.can_hold(kind):
            left_out += 1
            continue
        xattrs = {name: value for name, value in file.xattrs.items() if b"=" not in name}
        left_out += len(file.xattrs) - len(xattrs)
        is_directory = kind == stat.S_IFDIR
        first = None if is_directory or file.links < 2 else first_names.setdefault(file.nid, path)
        is_hard_link = first is not None and first != path
        target = reader.link(file) if kind == stat.S_IFLNK else b""
        has_contents = kind == stat.S_IFREG and not is_hard_link
        packed.write(
            tar.entry(
                (path + b"/" if path else b"./") if is_directory else path,
                file.mode,
                size_bytes=file.size_bytes if has_contents else 0,
                owner=(file.uid, file.gid),
                mtime=file.mtime,
                target=(first or b"") if is_hard_link else target,
                is_hard_link=is_hard_link,
                device=file.device,
                xattrs={} if is_hard_link else xattrs,
            )
        )
        if has_contents:
            for piece in reader.read(file):
                packed.write(piece)
            packed.write(tar.padding(file.size_bytes))
    packed.write(tar.END)
    return left_out


class _Packed:
    """A compressed file, hashed before and after the compression."""

    def __init__(self, output: int) -> None:
        self.size_bytes = 0
        self._output = output
        self._zlib: Any = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        self._inner = hashlib.sha256()
        self._outer = hashlib.sha256()
        self._buffer = bytearray()

    @property
    def digest(self) -> str:
        return f"sha256:{self._outer.hexdigest()}"

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._inner.hexdigest()}"

    def write(self, data: bytes) -> None:
        self._inner.update(data)
        self._keep(self._zlib.compress(data), _BUFFER_BYTES)

    def finish(self) -> None:
        self._keep(self._zlib.flush(), 0)
        if not self.size_bytes:
            raise DamagedError("the image has no files")

    def _keep(self, data: bytes, most_bytes: int) -> None:
        self._buffer += data
        if len(self._buffer) > most_bytes:
            write_all(self._output, bytes(self._buffer), self.size_bytes)
            self._outer.update(self._buffer)
            self.size_bytes += len(self._buffer)
            self._buffer.clear()
