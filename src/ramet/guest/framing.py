"""Frames of the agent's protocol: octet stuffing, and finding frames again from any point of a stream.

Source: `docs/reference/protocol.md`, "Framing"; RFC 1662 §4.2. Lengths are bytes. The guest is untrusted: a
decoder keeps at most one stuffed frame, and drops what isn't a frame instead of raising.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

from ramet.errors import UsageError

PAYLOAD_MAX_BYTES: Final = 65_536
_HEADER: Final = struct.Struct("<BBHII")
FRAME_MAX_BYTES: Final = _HEADER.size + PAYLOAD_MAX_BYTES
STUFFED_MAX_BYTES: Final = 2 * FRAME_MAX_BYTES

_FLAG: Final = b"\x7e"
_ESCAPE: Final = b"\x7d"
_ESCAPED_FLAG: Final = b"\x7d\x5e"
_ESCAPED_ESCAPE: Final = b"\x7d\x5d"
# A guest may send flags and crumbs without end: they must cost the host less than frames do.
_FRAME_LIKE: Final = re.compile(rb"[^\x7e]{%d,}" % _HEADER.size)


class Frame(NamedTuple):
    """A message: its type and stream number, and the payload, whose meaning depends on the type."""

    type: int
    stream: int
    payload: bytes


def encode_frame(type_: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode a frame for the wire, with a flag before and after it.

    Raises `UsageError` when the payload is longer than a frame holds.
    """
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise UsageError(
            f"a message to the guest holds at most {PAYLOAD_MAX_BYTES} bytes, this one has {len(payload)}",
            hint="pass large data through standard input instead of arguments or environment",
        )
    plain = _HEADER.pack(type_, 0, 0, stream, len(payload)) + payload
    return _FLAG + stuff(plain) + _FLAG


def stuff(plain: bytes) -> bytes:
    """Escape every 0x7e and 0x7d in `plain`: the result has no 0x7e."""
    return plain.replace(_ESCAPE, _ESCAPED_ESCAPE).replace(_FLAG, _ESCAPED_FLAG)


def unstuff(stuffed: bytes) -> bytes | None:
    """Reverse `stuff`, or return None for an escape that is cut off or unnecessary."""
    escapes = stuffed.count(_ESCAPE)
    if escapes == 0:
        return stuffed
    if escapes != stuffed.count(_ESCAPED_ESCAPE) + stuffed.count(_ESCAPED_FLAG):
        return None
    return stuffed.replace(_ESCAPED_FLAG, _FLAG).replace(_ESCAPED_ESCAPE, _ESCAPE)


class FrameDecoder:
    """A decoder that cuts a byte stream, in pieces of any size, into frames.

    Never raises; holds one frame at most.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._dropping = False

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes, in order."""
        first, last = data.find(_FLAG), data.rfind(_FLAG)
        if first < 0:
            self._hold(data)
            return []
        self._hold(data[:first])
        frames = [] if self._dropping else [_parse(bytes(self._pending))]
        frames += map(_parse, _FRAME_LIKE.findall(data, first, last))
        self._pending.clear()
        self._dropping = False
        self._hold(data[last + 1 :])
        return [frame for frame in frames if frame is not None]

    def _hold(self, piece: bytes) -> None:
        if self._dropping:
            return
        if len(self._pending) + len(piece) > STUFFED_MAX_BYTES:
            self._pending.clear()
            self._dropping = True
        else:
            self._pending += piece


def _parse(stuffed: bytes) -> Frame | None:
    plain = unstuff(stuffed)
    if plain is None or not _HEADER.size <= len(plain) <= FRAME_MAX_BYTES:
        return None
    type_, _flags, _reserved, stream, length = _HEADER.unpack_from(plain)
    if len(plain) != _HEADER.size + length:
        return None
    return Frame(type_, stream, plain[_HEADER.size :])
