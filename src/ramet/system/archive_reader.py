"""Read an archive from beginning to end, and believe nothing in it before it is checked."""

from __future__ import annotations

import hashlib
import os
import select
from collections.abc import Callable
from typing import Final

from ramet.errors import DamagedError, UnavailableError
from ramet.progress import report
from ramet.system.archive_format import (
    DATA,
    DIGEST_BYTES,
    END,
    FORMAT,
    HEADER,
    MAGIC,
    MAX_DATA_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_NAME_BYTES,
    MAX_PARTS,
    PART,
    PART_END,
    RECORD,
    RESERVED,
    STORED,
    go_on,
    is_ready,
)
from ramet.system.files import filesystem_errors, write_all
from ramet.system.zeros import not_zeros
from ramet.units import KIB

_MAX_FILE_BYTES: Final = (1 << 63) - 1  # off_t
_BUFFER_BYTES: Final = MAX_DATA_BYTES + 64 * KIB
_AGAIN: Final = "copy it again, or export it again"


class ArchiveReader:
    """An archive that is being received.

    `manifest` and `data_bytes` are there at once; then call `next_part` and `receive` in turn until there is
    no next part. Only then is the archive known to be whole: until then no content may be trusted or
    published.

    Every method raises `DamagedError` when this is no archive, or is cut short, altered or against the rules;
    `UnavailableError` when it has a newer format; `FilesystemError` when reading it fails. `name` is the
    archive's name in errors.
    """

    def __init__(self, stream: int, *, name: str, checkpoint: Callable[[], None] = go_on) -> None:
        self._source = _Source(stream, name, checkpoint)
        self._name = name
        self._names: set[str] = set()
        self._size: int | None = None
        self._left: int
        magic, version, codec, reserved, manifest_bytes, self.data_bytes = HEADER.unpack(
            self._source.take(HEADER.size)
        )
        if magic != MAGIC:
            raise DamagedError(f"{name} isn't an export by ramet, or was altered on its way", hint=_AGAIN)
        if version != FORMAT or codec != STORED or reserved:
            what = f"format {version}" if version != FORMAT else f"codec {codec}"
            raise UnavailableError(
                f"{name} has {what}; this ramet knows format {FORMAT}, codec {STORED}", hint="upgrade ramet"
            )
        if manifest_bytes > MAX_MANIFEST_BYTES:
            raise self._damaged(f"its manifest has {manifest_bytes} bytes")
        self._left = self.data_bytes
        """Bytes of data that may still come."""
        self.manifest = bytes(self._source.take(manifest_bytes))
        """The exported manifest, at most MAX_MANIFEST_BYTES."""

    def next_part(self) -> tuple[str, int] | None:
        """Name and size of the part that comes now, or None when the archive has ended and was whole."""
        kind, length, value = self._record()
        if kind == END:
            if length != DIGEST_BYTES or value:
                raise self._damaged("its last record is malformed")
            expected = self._source.digest()
            if bytes(self._source.take(DIGEST_BYTES)) != expected:
                raise self._damaged("its digest isn't that of its content")
            if not self._source.at_end():
                raise self._damaged("something follows after its end")
            return None
        if kind != PART:
            raise self._damaged(f"a record of type {kind} stands where a part should begin")
        if not 0 < length <= MAX_NAME_BYTES:
            raise self._damaged(f"a part's name has {length} bytes")
        try:
            name = str(self._source.take(length), "utf-8")
        except UnicodeDecodeError:
            raise self._damaged("a part's name isn't UTF-8") from None
        if name.startswith(".") or "/" in name or not name.isprintable():
            raise self._damaged(f"{name!r} isn't the name of a part")
        if name in self._names:
            raise self._damaged(f"part {name!r} comes twice")
        if len(self._names) == MAX_PARTS:
            raise self._damaged(f"it has more than {MAX_PARTS} parts")
        if value > _MAX_FILE_BYTES:
            raise self._damaged(f"part {name!r} has {value} bytes")
        self._names.add(name)
        self._size = value
        return name, value

    def receive(self, descriptor: int) -> None:
        """Fill the empty file `descriptor` with the part that `next_part` named; pages of zeros become holes.

        Raises `OSError` when writing fails. The file is incomplete then, and the archive can't be read on.
        """
        if self._size is None:
            raise ValueError("there is no part to receive")
        size, self._size = self._size, None
        os.ftruncate(descriptor, size)
        following = 0
        while True:
            kind, length, offset = self._record()
            if kind == PART_END:
                if length or offset:
                    raise self._damaged("the end of a part is malformed")
                return
            if kind != DATA:
                raise self._damaged(f"a record of type {kind} stands among a part's data")
            if not 0 < length <= MAX_DATA_BYTES:
                raise self._damaged(f"a record has {length} bytes of data")
            if offset < following:
                raise self._damaged(f"data for offset {offset} comes after data up to {following}")
            if offset + length > size:
                raise self._damaged(f"a part of {size} bytes has data at {offset + length}")
            if length > self._left:
                raise self._damaged(f"it has more than the {self.data_bytes} bytes of data that it announced")
            self._left -= length
            following = offset + length
            data = self._source.take(length)
            for first, last in not_zeros(data, offset):
                write_all(descriptor, data[first:last], offset + first)
            report("receiving", self.data_bytes - self._left, self.data_bytes)

    def _record(self) -> tuple[int, int, int]:
        """Type, length and value of the next record's head."""
        kind, reserved, length, value = RECORD.unpack(self._source.take(RECORD.size))
        if reserved != RESERVED:
            raise self._damaged("a record's reserved bytes aren't zeros")
        return kind, length, value

    def _damaged(self, why: str) -> DamagedError:
        return DamagedError(f"{self._name} is damaged: {why}", hint=_AGAIN)


class _Source:
    """The reading end: a bounded buffer, and the digest of the bytes taken out of it."""

    def __init__(self, stream: int, name: str, checkpoint: Callable[[], None]) -> None:
        self._stream = stream
        self._name = name
        self._checkpoint = checkpoint
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._begin = self._end = 0
        self._digested = 0
        """Up to here, in the buffer."""
        self._digest = hashlib.sha256()
        self._read = 0

    def take(self, length: int) -> memoryview:
        """Take the next bytes, valid until the next call; at most as many as the longest record has.

        Raises `DamagedError` when there are fewer.
        """
        while self._end - self._begin < length:
            if not self._fill():
                raise DamagedError(f"{self._name} is cut short, after {self._read} bytes", hint=_AGAIN)
        self._begin += length
        return self._buffer[self._begin - length : self._begin]

    def digest(self) -> bytes:
        """Compute the digest of all bytes taken so far."""
        self._digest.update(self._buffer[self._digested : self._begin])
        self._digested = self._begin
        return self._digest.digest()

    def at_end(self) -> bool:
        """Tell whether no bytes follow."""
        return self._begin == self._end and not self._fill()

    def _fill(self) -> bool:
        """Read more behind what wasn't taken yet; false at the end."""
        if self._begin:
            self.digest()
            left = self._end - self._begin
            self._buffer[:left] = self._buffer[self._begin : self._end]
            self._begin, self._end, self._digested = 0, left, 0
        with filesystem_errors("read", self._name):
            while True:
                self._checkpoint()
                if not is_ready(self._stream, select.POLLIN):
                    continue
                try:
                    got = os.readv(self._stream, [self._buffer[self._end :]])
                except BlockingIOError:
                    continue
                self._end += got
                self._read += got
                return got > 0
