"""Debian packages, read without dpkg so that a kernel can be taken from one on any Linux.

Sources: deb(5) and ar(5). Nothing is unpacked by the paths in the archive: the caller asks for members by
name.
"""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from ramet.errors import DamagedError, RametError
from ramet.images.compression import CHUNK_BYTES, decompress_chunks
from ramet.units import GIB, MIB

_UNPACKED_LIMIT_BYTES: Final = 4 * GIB
_CONTROL_LIMIT_BYTES: Final = 16 * MIB
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
            name, size = _find_member(file, "data.tar")
            for chunk in decompress_chunks(
                name.removeprefix("data.tar"), _chunks(file, size), limit_bytes=_UNPACKED_LIMIT_BYTES
            ):
                unpacked.write(chunk)
            unpacked.seek(0)
            archive = stack.enter_context(tarfile.open(fileobj=unpacked, mode="r:"))
        except (tarfile.TarError, RametError, ValueError) as error:
            raise DamagedError(f"{package} is not a whole Debian package: {error}") from error
        yield archive


def package_relations(package: Path) -> tuple[str, list[str]]:
    """Return a package's own name and the names of the packages that it depends on; empty when unknown.

    Of alternatives the first is named. Raises `OSError` when the package can't be read.
    """
    fields = _control_fields(package)
    depends = ",".join(fields.get(name, "") for name in ("pre-depends", "depends"))
    names = (re.match(r"\s*([a-z0-9][a-z0-9+.~-]*)", relation) for relation in depends.split(","))
    return fields.get("package", ""), [match[1] for match in names if match]


def _control_fields(package: Path) -> dict[str, str]:
    try:
        with package.open("rb") as file:
            name, size = _find_member(file, "control.tar")
            suffix, chunks = name.removeprefix("control.tar"), _chunks(file, size)
            unpacked = b"".join(decompress_chunks(suffix, chunks, limit_bytes=_CONTROL_LIMIT_BYTES))
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for member in archive:
                if member.isreg() and member.name in ("control", "./control"):
                    content = archive.extractfile(member)
                    assert content is not None, "it is a regular file"
                    text = content.read().decode("utf-8", "replace")
                    break
            else:
                return {}
    except (tarfile.TarError, RametError, ValueError):
        return {}  # only hints are made of it
    lines = re.sub(r"\n[ \t]+", " ", text).splitlines()
    return {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _find_member(file: IO[bytes], prefix: str) -> tuple[str, int]:
    """Move `file` to the beginning of the member `prefix`.*. Returns the member's name and size."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise ValueError("no ar archive")
    while header := file.read(_HEADER_BYTES):
        if len(header) < _HEADER_BYTES or header[58:] != b"`\n":
            raise ValueError("broken ar header")
        name, size = header[:16].decode("ascii").rstrip(" ").rstrip("/"), int(header[48:58])
        if name.startswith(prefix):
            return name, size
        file.seek(size + size % 2, 1)
    raise ValueError(f"no {prefix} in it")


def _chunks(file: IO[bytes], size_bytes: int) -> Iterator[bytes]:
    while size_bytes and (chunk := file.read(min(size_bytes, CHUNK_BYTES))):
        size_bytes -= len(chunk)
        yield chunk
    if size_bytes:
        raise ValueError("it is cut short")
