"""Fields of the protocol's messages: tag, length, value. Source: `docs/reference/protocol.md`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from ramet.errors import ProtocolError, UsageError

TEXT_MAX_BYTES: Final = 512
_FIELD: Final = struct.Struct("<BI")
_NUMBER: Final = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


def put(tag: int, value: bytes) -> bytes:
    """Encode a field."""
    return _FIELD.pack(tag, len(value)) + value


def put_number(tag: int, width: int, number: int) -> bytes:
    """Encode a field with a little-endian number of `width` bytes (1, 2, 4 or 8).

    Raises `UsageError` when the number doesn't fit.
    """
    try:
        return put(tag, struct.pack(_NUMBER[width], number))
    except struct.error:
        raise UsageError(f"{number} is not an unsigned number of {8 * width} bits") from None


def put_text(tag: int, text: str) -> bytes:
    """Encode a field with a text. Bytes that weren't UTF-8 (as `os.fsdecode` keeps them) are restored."""
    value = text.encode("utf-8", "surrogateescape")
    if b"\0" in value:
        raise UsageError(f"{text!r} has a NUL character in it, which no program can be given")
    return put(tag, value)


class Fields:
    """The fields of a payload from a guest. All methods raise `ProtocolError` on malformed content."""

    def __init__(self, payload: bytes) -> None:
        self._values: dict[int, list[bytes]] = {}
        for tag, value in _fields(payload):
            self._values.setdefault(tag, []).append(value)

    def all(self, tag: int) -> list[bytes]:
        """Return all values of that tag, in order."""
        return self._values.get(tag, [])

    def one(self, tag: int, *, max_bytes: int = TEXT_MAX_BYTES) -> bytes:
        """Return the value of a required tag."""
        values = self.all(tag)
        if not values:
            raise ProtocolError(f"the guest's answer lacks field {tag}")
        if len(values[-1]) > max_bytes:
            raise ProtocolError(f"field {tag} of the guest's answer has {len(values[-1])} bytes")
        return values[-1]

    def number(self, tag: int, width: int) -> int:
        """Return the number of `width` bytes in a required tag."""
        value = self.one(tag)
        if len(value) != width:
            raise ProtocolError(f"field {tag} of the guest's answer is no number of {width} bytes")
        return int.from_bytes(value, "little")

    def number_or_none(self, tag: int, width: int) -> int | None:
        """Return the number in an optional tag, or None."""
        return self.number(tag, width) if self.all(tag) else None

    def text(self, tag: int, *, max_bytes: int = TEXT_MAX_BYTES) -> str:
        """Return the text in a required tag; bytes that aren't UTF-8 become U+FFFD."""
        return shown(self.one(tag, max_bytes=max_bytes))


def _fields(payload: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(payload):
        if len(payload) - at < _FIELD.size:
            raise ProtocolError("a field of the guest's answer is cut off")
        tag, length = _FIELD.unpack_from(payload, at)
        at += _FIELD.size
        if length > len(payload) - at:
            raise ProtocolError("a field of the guest's answer runs past its end")
        yield tag, payload[at : at + length]
        at += length


def shown(value: bytes) -> str:
    """Make any text of a guest fit for a message to people, without control characters."""
    text = value.decode("utf-8", "replace")
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
