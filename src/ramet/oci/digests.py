"""Digests: the names of content, and the check that content has its name.

Source: OCI image-spec, descriptor.md, "Digests".
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from ramet.errors import UsageError

_HEX_LENGTH: Final = {"sha256": 64, "sha512": 128}
"""The registered algorithms, with the number of their hexadecimal digits."""
_SHAPE: Final = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+", re.ASCII)
_LOWER_HEX: Final = re.compile(r"[0-9a-f]+")
_LONGEST: Final = 256


@dataclass(frozen=True, order=True)
class Digest:
    """The digest of some content, such as `sha256:9f86d0…`."""

    algorithm: str
    hexadecimal: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read a digest. Raises `UsageError` for any other text and for unknown algorithms."""
        if len(text) > _LONGEST or not _SHAPE.fullmatch(text):
            raise UsageError(
                f"{text[:_LONGEST]!r} is no digest",
                hint="a digest looks like sha256: and 64 hexadecimal digits",
            )
        algorithm, _, hexadecimal = text.partition(":")
        length = _HEX_LENGTH.get(algorithm)
        if length is None:
            raise UsageError(
                f"digest {text!r} has the algorithm {algorithm}, which ramet doesn't check",
                hint=f"use {' or '.join(_HEX_LENGTH)}",
            )
        if len(hexadecimal) != length or not _LOWER_HEX.fullmatch(hexadecimal):
            raise UsageError(
                f"digest {text!r} is malformed",
                hint=f"{algorithm} has {length} digits of 0-9 and a-f",
            )
        return cls(algorithm, hexadecimal)

    @classmethod
    def of(cls, content: bytes, *, algorithm: str = "sha256") -> Digest:
        """Return the digest of `content`."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def hasher(self) -> Any:
        """Return a hash object of this digest's algorithm (`hashlib`), to be fed with the content."""
        return hashlib.new(self.algorithm)

    def matches(self, content: bytes) -> bool:
        """Tell whether `content` has this digest."""
        return Digest.of(content, algorithm=self.algorithm) == self

    @property
    def short(self) -> str:
        """The first twelve digits, for people."""
        return self.hexadecimal[:12]

    @property
    def file_name(self) -> str:
        """A name for files about this content: `sha256-9f86d0…`."""
        return f"{self.algorithm}-{self.hexadecimal}"

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hexadecimal}"
