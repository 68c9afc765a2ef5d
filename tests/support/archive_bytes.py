"""Archives put together byte by byte from docs/reference/archive.md, right ones and wrong ones."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def header(
    manifest: bytes,
    *,
    magic: bytes = b"RAMET\r\n\x1a",
    version: int = 1,
    codec: int = 0,
    reserved: int = 0,
    manifest_bytes: int | None = None,
    data_bytes: int = 1 << 20,
) -> bytes:
    """The header, and the manifest behind it."""
    length = len(manifest) if manifest_bytes is None else manifest_bytes
    return magic + struct.pack("<HBBIQ", version, codec, reserved, length, data_bytes) + manifest


def record(kind: int, length: int = 0, value: int = 0, reserved: bytes = b"\0\0\0") -> bytes:
    """The head of a record."""
    return struct.pack("<B3sIQ", kind, reserved, length, value)


def part(name: str | bytes, size: int, *data: tuple[int, bytes]) -> bytes:
    """A whole part: its name and size, its data, its end."""
    encoded = name if isinstance(name, bytes) else name.encode()
    pieces = [record(2, len(piece), offset) + piece for offset, piece in data]
    return b"".join([record(1, len(encoded), size), encoded, *pieces, record(3)])


def ended(archive: bytes) -> bytes:
    """With the end record that belongs behind these bytes."""
    archive += record(4, 32)
    return archive + hashlib.sha256(archive).digest()


@contextmanager
def stream_of(archive: bytes) -> Iterator[int]:
    """A descriptor from which an archive can be read."""
    with tempfile.TemporaryFile() as file:
        file.write(archive)
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        yield file.fileno()
