"""Text that isn't quite text: names of files are bytes on Linux, and JSON and terminals want Unicode.

Inside ramet such a name is what Python makes of it: bytes that can't be decoded are lone surrogates
(`os.fsdecode`, PEP 383), and `os.fsencode` gives them back. Where a text leaves ramet, they are escaped.
"""

from __future__ import annotations

import os
import re
from typing import Any

_SURROGATES = re.compile("[\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with each byte that couldn't be decoded as `\\xNN`, so that it can be encoded and read."""
    return _SURROGATES.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def encode_json(document: Any) -> bytes:
    """A JSON document, always in UTF-8 and always valid: what couldn't be decoded is `visible`."""
    import msgspec

    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:
        return msgspec.json.encode(_all_visible(msgspec.to_builtins(document)))


def _all_visible(value: Any) -> Any:
    match value:
        case str():
            return visible(value)
        case dict():
            return {_all_visible(key): _all_visible(one) for key, one in value.items()}
        case list() | tuple():
            return [_all_visible(one) for one in value]
        case _:
            return value


def as_typed(word: str) -> str:
    """A word of the command line for a guest: whatever this locale is, its bytes arrive as they were typed.

    A guest's texts are UTF-8, and bytes that aren't stay what they are (`os.fsencode`, "surrogateescape").
    """
    return os.fsencode(word).decode("utf-8", "surrogateescape")
