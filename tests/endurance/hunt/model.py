"""What each guest and each capture of a hunted family has to hold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

WORDS = 512
"""Words of 64 bits in a page of 4 KiB."""
_WORD_LIMIT = 1 << 64


@dataclass(frozen=True)
class Page:
    """A page with one number in every word, but for those that were written singly."""

    number: int = 0
    words: tuple[tuple[int, int], ...] = ()

    @property
    def sum(self) -> int:
        """Of its words, modulo 2^64."""
        total = (WORDS - len(self.words)) * self.number + sum(number for _, number in self.words)
        return total % _WORD_LIMIT

    def with_word(self, index: int, number: int) -> Page:
        """This page after one word was written."""
        return replace(self, words=tuple(sorted({**dict(self.words), index: number}.items())))

    def encoded(self) -> bytes:
        """Its 4096 bytes, as an x86 guest has them."""
        content = bytearray(self.number.to_bytes(8, "little") * WORDS)
        for index, number in self.words:
            content[index * 8 : index * 8 + 8] = number.to_bytes(8, "little")
        return bytes(content)


ZERO = Page()


@dataclass
class Contents:
    """The hunted part of a guest's memory and disk: what isn't listed is zeros."""

    memory: dict[int, Page] = field(default_factory=dict)
    """By the number of the page within the hunted part."""
    disk: dict[int, int] = field(default_factory=dict)
    """By sector, or by block of the hunted part."""

    def copy(self) -> Contents:
        """What a fork begins with."""
        return Contents(dict(self.memory), dict(self.disk))


@dataclass(frozen=True)
class Span:
    """What a writer that was at work during a capture had done: the capture has a moment in between.

    It writes a number to one page, to another, to a sector, then the next number.
    """

    first: int
    """Was on the disk before the capture was begun."""
    last: int
    """The last that was begun before the capture was over."""


@dataclass
class Guest:
    """An instance. `contents.memory` means nothing while it is stopped or has failed."""

    id: str
    name: str
    state: str
    generation: int
    contents: Contents
    parent: str | None = None

    @property
    def is_capture(self) -> bool:
        """Whether its directory is one."""
        return self.state in {"template", "standby"}

    @property
    def has_vmm(self) -> bool:
        """Whether it has one as far as is known."""
        return self.state in {"running", "paused"}


@dataclass
class Capture:
    """A snapshot. It never changes; `span` until its first fork has shown what it is."""

    id: str
    name: str
    source: str
    contents: Contents
    span: Span | None = None


@dataclass
class Family:
    """Everything of one home that is supposed to be there."""

    guests: dict[str, Guest] = field(default_factory=dict)
    snapshots: dict[str, Capture] = field(default_factory=dict)
    numbers: int = 1000

    def number(self) -> int:
        """One that hasn't been written anywhere yet."""
        self.numbers += 1
        return self.numbers

    def in_state(self, *states: str) -> list[Guest]:
        """The guests in one of those states, oldest first."""
        return [guest for guest in self.guests.values() if guest.state in states]
