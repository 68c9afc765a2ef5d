"""Debian packages, read without dpkg so that a kernel can be taken from one on any Linux.

Sources: deb(5) and ar(5). Nothing is unpacked by the paths in the archive: the caller asks for members by
name.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from ramet.errors import DamagedError, RametError
from ramet.images.compression import CHUNK_BYTES, decompress_chunks
from ramet.units import GIB

_UNPACKED_LIMIT_BYTES: Final = 4 * GIB
_AR_MAGIC: Final = b"!<arch>\n"
_HEADER_BYTES: Final = 60


@contextmanager
def open_package(package: Path) -> Iterator[tarfile.TarFile]:
    """Open the package's files as a tar archive that can be read in any order.

    The archive is decompressed into an unnamed temporary file. Raises `DamagedError` when `package` is
    damaged or no Debian package, `OSError` when it can't be read.
    """
    with ExitStack() as stack:
        file = stack.enter_context(package.open("rb"))
        unpacked = stack.enter_context(tempfile.TemporaryFile())
        try:
            name, size = _find_data(file)
            for chunk in decompress_chunks(
                name.removeprefix("data.tar"), _chunks(file, size), limit_bytes=_UNPACKED_LIMIT_BYTES
            ):
                unpacked.write(chunk)
            unpacked.seek(0)
            archive = stack.enter_context(tarfile.open(fileobj=unpacked, mode="r:"))
        except (tarfile.TarError, RametError, ValueError) as error:
            raise DamagedError(f"{package} is not a whole Debian package: {error}") from error
        yield archive


def _find_data(file: IO[bytes]) -> tuple[str, int]:
    """Move `file` to the beginning of data.tar.*. Returns the member's name and size."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise ValueError("no ar archive")
    while header := file.read(_HEADER_BYTES):
        if len(header) < _HEADER_BYTES or header[58:] != b"`\n":
            raise ValueError("broken ar header")
        name, size = header[:16].decode("ascii").rstrip(" ").rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            return name, size
        file.seek(size + size % 2, 1)
    raise ValueError("no data.tar in it")


def _chunks(file: IO[bytes], size_bytes: int) -> Iterator[bytes]:
    while size_bytes and (chunk := file.read(min(size_bytes, CHUNK_BYTES))):
        size_bytes -= len(chunk)
        yield chunk
    if size_bytes:
        raise ValueError("it is cut short")
