"""Text that isn't quite text: names of files are bytes on Linux, and JSON and terminals want Unicode.

Inside ramet such a name is what Python makes of it: bytes that can't be decoded are lone surrogates
(`os.fsdecode`, PEP 383), and `os.fsencode` gives them back. Where a text leaves ramet, they are escaped.
A guest's text may be meant to drive a terminal: `printable` takes out what could.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

_SURROGATES = re.compile("[\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Replace each undecodable byte in `text` by `\xNN`, so that the text can be encoded and read."""
    return _SURROGATES.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def encode_json(document: Any) -> bytes:
    """Encode a JSON document, always in UTF-8 and always valid: undecoded bytes are made `visible`."""
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
            return {_all_visible(key): _all_visible(item) for key, item in value.items()}
        case list() | tuple():
            return [_all_visible(item) for item in value]
        case _:
            return value


def as_typed(word: str) -> str:
    """Turn a word of the command line into a guest's text: its bytes arrive as typed, under any locale.

    A guest's texts are UTF-8, and bytes that aren't stay what they are (`os.fsencode`, "surrogateescape").
    """
    return os.fsencode(word).decode("utf-8", "surrogateescape")


# ECMA-48: control sequences (5.4), control strings (5.6: DCS, SOS, OSC, PM, APC; xterm also ends them with
# BEL), other escape sequences; each begins with ESC and a byte, or with one character of U+0080…U+009F. One
# that isn't complete loses its beginning only: the rest is harmless text. No repetition runs over another
# beginning, so that the time is linear.
_SEQUENCES: Final = (
    r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]"
    r"|(?:\x1b[PX\]^_]|[\x90\x98\x9d-\x9f])[^\x07\x18\x1a\x1b\x80-\x9f\n]*+(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*+[0-~]"
)
_LINE_ENDS: Final = r"\r+\n?"
# All other controls, and what turns the direction of writing or hides: Bidi_Control, U+2028, U+2029, U+FEFF.
_UNSEEN: Final = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"


def printable(data: bytes) -> str:
    """Return a guest's output as text that can't drive a terminal.

    It has no escape sequences, and no control characters but newline and tab. Carriage returns become
    newlines, invalid UTF-8 becomes U+FFFD. Takes linear time.
    """
    # Compiled at the first call, and then kept by `re`: most commands of the command line print no such text.
    text = re.sub(_SEQUENCES, "", data.decode(errors="replace"))
    return re.sub(_UNSEEN, "", re.sub(_LINE_ENDS, "\n", text))
