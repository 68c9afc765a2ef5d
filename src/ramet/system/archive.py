"""Sparse files and a few bytes about each as one stream: the format of docs/reference/archive.md.

This module knows files, not their purpose. They are written and read from beginning to end, without seeking,
by blocking calls: in a worker thread. Neither end waits for the other for longer than 0.2 s without calling
`checkpoint`, which may raise to give up (`threads.check_cancelled` is one).
"""

from __future__ import annotations

import errno
import hashlib
import os
import select
import stat
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ramet.progress import report
from ramet.system.archive_format import (
    DATA,
    DIGEST_BYTES,
    END,
    FORMAT,
    HEADER,
    MAGIC,
    PART,
    PART_END,
    RECORD,
    RESERVED,
    STORED,
    go_on,
    is_ready,
)
from ramet.system.copying import data_extents
from ramet.system.files import filesystem_errors
from ramet.system.zeros import not_zeros
from ramet.units import MIB

_WINDOW_BYTES: Final = MIB


class ArchiveFacts(NamedTuple):
    """An archive's own size, the sizes of the files in it together, and what of those isn't zeros."""

    archive_bytes: int
    logical_bytes: int
    data_bytes: int


def write_archive(
    out: int,
    manifest: bytes,
    parts: Sequence[tuple[str, int]],
    *,
    to: str,
    checkpoint: Callable[[], None] = go_on,
) -> ArchiveFacts:
    """Write `manifest` and the files `parts` (names, and readable descriptors) to the descriptor `out`.

    Holes and pages of zeros aren't written. The files mustn't change meanwhile. `to` is the archive's name in
    errors. Raises `FilesystemError`, a broken pipe among them; the bytes written until then can't be used,
    and a reader notices that.
    """
    with filesystem_errors("write", to):
        sizes = [os.fstat(descriptor).st_size for _, descriptor in parts]
        bound = sum(
            end - start
            for (_, descriptor), size in zip(parts, sizes, strict=True)
            for start, end in data_extents(descriptor, size)
        )
        sink = _Sink(out, checkpoint)
        sink.put(HEADER.pack(MAGIC, FORMAT, STORED, 0, len(manifest), bound))
        sink.put(manifest)
        data_bytes = read_bytes = 0

        def seen(length: int) -> None:
            nonlocal read_bytes
            read_bytes += length
            report("", read_bytes, bound)

        for (name, descriptor), size in zip(parts, sizes, strict=True):
            encoded = name.encode()
            sink.put(RECORD.pack(PART, RESERVED, len(encoded), size) + encoded)
            data_bytes += _put_data(sink, descriptor, size, seen)
            sink.put(RECORD.pack(PART_END, RESERVED, 0, 0))
        sink.finish()
    return ArchiveFacts(sink.written, sum(sizes), data_bytes)


def _put_data(sink: _Sink, descriptor: int, size: int, seen: Callable[[int], None]) -> int:
    """Write all bytes of a file that aren't zeros, as records, and return their number.

    `seen` is called with the length of each piece that was read.
    """
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
                sink.put(RECORD.pack(DATA, RESERVED, last - first, position + first))
                sink.put(buffer[first:last])
                data_bytes += last - first
            seen(got)
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
        self._pending += RECORD.pack(END, RESERVED, DIGEST_BYTES, 0)
        self._digest.update(self._pending)
        self._pending += self._digest.digest()
        self._flush()

    def _flush(self) -> None:
        with memoryview(self._pending) as view:
            done = 0
            while done < len(view):
                self.checkpoint()
                if self._waits and not is_ready(self._out, select.POLLOUT):
                    continue
                # A pipe that is ready takes that much without blocking (poll(2), pipe(7)).
                end = done + select.PIPE_BUF if self._waits else len(view)
                try:
                    done += os.write(self._out, view[done:end])
                except BlockingIOError:
                    continue
        self.written += len(self._pending)
        self._pending.clear()
