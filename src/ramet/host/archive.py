"""Sparse files and a few bytes about them as one stream, a file or a pipe: the format of docs/archive.md.

Knows files, not what they are for. Written and read from beginning to end, without seeking, by blocking
calls: in a worker thread. Neither end waits for the other for longer than 0.2 s without calling `checkpoint`,
which may raise to give up (`threads.check_cancelled` is one).
"""

from __future__ import annotations

import errno
import hashlib
import os
import select
import stat
import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ramet.errors import DamagedError, UnavailableError
from ramet.host.files import data_extents, filesystem_errors, write_all
from ramet.host.zeros import not_zeros
from ramet.units import KIB, MIB

FORMAT: Final = 1
MAX_MANIFEST_BYTES: Final = 4 * MIB
MAX_PARTS: Final = 64
MAX_DATA_BYTES: Final = 4 * MIB
"""Of one record."""
MAX_NAME_BYTES: Final = 255

# Not text: what was treated as text on its way is recognised by it.
_MAGIC: Final = b"RAMET\r\n\x1a"
_HEADER: Final = struct.Struct("<8sHBBIQ")
_RECORD: Final = struct.Struct("<B3sIQ")
_RESERVED: Final = bytes(3)
_STORED: Final = 0  # the codec: data as it is
_PART, _DATA, _PART_END, _END = 1, 2, 3, 4
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_MAX_FILE_BYTES: Final = (1 << 63) - 1  # off_t

_WINDOW_BYTES: Final = MIB
_BUFFER_BYTES: Final = MAX_DATA_BYTES + 64 * KIB
_POLL_MS: Final = 200
_AGAIN: Final = "copy it again, or export it again"


class ArchiveFacts(NamedTuple):
    """An archive's own size, the sizes of the files in it together, and what of those isn't zeros."""

    archive_bytes: int
    logical_bytes: int
    data_bytes: int


def go_on() -> None:
    """The checkpoint of who never gives up."""


def write_archive(
    out: int,
    manifest: bytes,
    parts: Sequence[tuple[str, int]],
    *,
    to: str,
    checkpoint: Callable[[], None] = go_on,
) -> ArchiveFacts:
    """Write `manifest` and the files `parts` (names, and descriptors that can be read) to the descriptor
    `out`.

    Holes and pages of zeros aren't written. The files mustn't change meanwhile. `to` is how errors call the
    archive. Raises `FilesystemError`, a broken pipe among them; what was written is of no use then, and says
    so to its reader.
    """
    with filesystem_errors("write", to):
        sizes = [os.fstat(descriptor).st_size for _, descriptor in parts]
        bound = sum(
            end - start
            for (_, descriptor), size in zip(parts, sizes, strict=True)
            for start, end in data_extents(descriptor, size)
        )
        sink = _Sink(out, checkpoint)
        sink.put(_HEADER.pack(_MAGIC, FORMAT, _STORED, 0, len(manifest), bound))
        sink.put(manifest)
        data_bytes = 0
        for (name, descriptor), size in zip(parts, sizes, strict=True):
            encoded = name.encode()
            sink.put(_RECORD.pack(_PART, _RESERVED, len(encoded), size) + encoded)
            data_bytes += _put_data(sink, descriptor, size)
            sink.put(_RECORD.pack(_PART_END, _RESERVED, 0, 0))
        sink.finish()
    return ArchiveFacts(sink.written, sum(sizes), data_bytes)


def _put_data(sink: _Sink, descriptor: int, size: int) -> int:
    """Everything of a file that isn't zeros, as records; returns how many bytes that is."""
    buffer = memoryview(bytearray(_WINDOW_BYTES))
    data_bytes = 0
    for start, end in data_extents(descriptor, size):
        position = start
        while position < end:
            # Here too: where all is zeros there is nothing to write.
            sink.checkpoint()
            got = os.preadv(descriptor, [buffer[: end - position]], position)
            if got == 0:
                raise OSError(errno.EIO, "a file shrank while it was read")
            for first, last in not_zeros(buffer[:got], position):
                sink.put(_RECORD.pack(_DATA, _RESERVED, last - first, position + first))
                sink.put(buffer[first:last])
                data_bytes += last - first
            position += got
    return data_bytes


class _Sink:
    """The writing end: gathers, digests, writes."""

    def __init__(self, out: int, checkpoint: Callable[[], None]) -> None:
        self.written = 0
        self.checkpoint = checkpoint
        self._out = out
        self._waits = not stat.S_ISREG(os.fstat(out).st_mode)
        self._digest = hashlib.sha256()
        self._pending = bytearray()

    def put(self, data: bytes | memoryview) -> None:
        self._pending += data
        if len(self._pending) >= _WINDOW_BYTES:
            self._digest.update(self._pending)
            self._flush()

    def finish(self) -> None:
        self._pending += _RECORD.pack(_END, _RESERVED, _DIGEST_BYTES, 0)
        self._digest.update(self._pending)
        self._pending += self._digest.digest()
        self._flush()

    def _flush(self) -> None:
        with memoryview(self._pending) as view:
            done = 0
            while done < len(view):
                self.checkpoint()
                if self._waits and not _ready(self._out, select.POLLOUT):
                    continue
                # A pipe that is ready takes that much without blocking (poll(2), pipe(7)).
                end = done + select.PIPE_BUF if self._waits else len(view)
                try:
                    done += os.write(self._out, view[done:end])
                except BlockingIOError:
                    continue
        self.written += len(self._pending)
        self._pending.clear()


def _ready(descriptor: int, event: int) -> bool:
    """Whether a descriptor became ready within 0.2 s."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(_POLL_MS))


class ArchiveReader:
    """An archive as it comes. `manifest` and `data_bytes` are there at once; then `next_part` and `receive`
    in turn until there is no next part. Only then is it known to be whole: until then nothing that came may
    be trusted or published.

    Any of them raises `DamagedError` when this is no archive, or is cut short, altered or against the rules;
    `UnavailableError` when it has a newer format; `FilesystemError` when reading it fails. `name` is how
    errors call it.
    """

    def __init__(self, stream: int, *, name: str, checkpoint: Callable[[], None] = go_on) -> None:
        self._source = _Source(stream, name, checkpoint)
        self._name = name
        self._names: set[str] = set()
        self._size: int | None = None
        self._left: int
        magic, version, codec, reserved, manifest_bytes, self.data_bytes = _HEADER.unpack(
            self._source.take(_HEADER.size)
        )
        if magic != _MAGIC:
            raise DamagedError(f"{name} isn't an export of ramet's, or was altered on its way", hint=_AGAIN)
        if version != FORMAT or codec != _STORED or reserved:
            what = f"format {version}" if version != FORMAT else f"codec {codec}"
            raise UnavailableError(
                f"{name} has {what}; this ramet knows format {FORMAT}, codec {_STORED}", hint="upgrade ramet"
            )
        if manifest_bytes > MAX_MANIFEST_BYTES:
            raise self._damaged(f"its manifest has {manifest_bytes} bytes")
        self._left = self.data_bytes
        """How many bytes of data may still come."""
        self.manifest = bytes(self._source.take(manifest_bytes))
        """What was exported as it, no more than MAX_MANIFEST_BYTES."""

    def next_part(self) -> tuple[str, int] | None:
        """Name and size of the part that comes now, or None when the archive has ended and was whole."""
        kind, length, value = self._record()
        if kind == _END:
            if length != _DIGEST_BYTES or value:
                raise self._damaged("its last record is malformed")
            expected = self._source.digest()
            if bytes(self._source.take(_DIGEST_BYTES)) != expected:
                raise self._damaged("its digest isn't that of its content")
            if not self._source.at_end():
                raise self._damaged("something follows after its end")
            return None
        if kind != _PART:
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
            if kind == _PART_END:
                if length or offset:
                    raise self._damaged("the end of a part is malformed")
                return
            if kind != _DATA:
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

    def _record(self) -> tuple[int, int, int]:
        """Type, length and value of the next record's head."""
        kind, reserved, length, value = _RECORD.unpack(self._source.take(_RECORD.size))
        if reserved != _RESERVED:
            raise self._damaged("a record's reserved bytes aren't zeros")
        return kind, length, value

    def _damaged(self, why: str) -> DamagedError:
        return DamagedError(f"{self._name} is damaged: {why}", hint=_AGAIN)


class _Source:
    """The reading end: a bounded buffer, and the digest of what was taken out of it."""

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
        """The next bytes, valid until the next call; at most as many as the longest record has.

        Raises `DamagedError` when there are fewer.
        """
        while self._end - self._begin < length:
            if not self._fill():
                raise DamagedError(f"{self._name} is cut short, after {self._read} bytes", hint=_AGAIN)
        self._begin += length
        return self._buffer[self._begin - length : self._begin]

    def digest(self) -> bytes:
        """Of everything taken so far."""
        self._digest.update(self._buffer[self._digested : self._begin])
        self._digested = self._begin
        return self._digest.digest()

    def at_end(self) -> bool:
        """Whether nothing follows."""
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
                if not _ready(self._stream, select.POLLIN):
                    continue
                try:
                    got = os.readv(self._stream, [self._buffer[self._end :]])
                except BlockingIOError:
                    continue
                self._end += got
                self._read += got
                return got > 0
