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

from ramet.system.copying import data_extents
from ramet.system.files import filesystem_errors
from ramet.system.zeros import not_zeros
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
