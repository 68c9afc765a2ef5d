"""Widths of text on a terminal, and text that is shortened to one."""

from __future__ import annotations


def width_of(text: str) -> int:
    """Return the number of columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(map(_columns_of, text))


def shorten(text: str, width: int, *, mark: str = "…") -> str:
    """Take the middle out of a text that is wider than `width`: the ends of names tell forks apart."""
    if width_of(text) <= width:
        return text
    room = max(0, width - len(mark))
    tail = cropped(text[::-1], room // 2)[::-1]
    return cropped(f"{cropped(text, room - width_of(tail))}{mark}{tail}", width)


def cropped(text: str, width: int) -> str:
    """Return the beginning of `text` that fits `width`."""
    taken = 0
    for index, character in enumerate(text):
        taken += _columns_of(character)
        if taken > width:
            return text[:index]
    return text


def _columns_of(character: str) -> int:
    if character.isascii():
        return 1
    import unicodedata

    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
