"""A guest's text that can't drive a terminal."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.text import printable
from ramet.units import KIB


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        (b"plain \xe2\x82\xac\tand\nlines\r\n", "plain €\tand\nlines\n"),
        (b"\x1b[31;1mred\x1b[0m", "red"),
        (b"\x1b]0;new title\x07after", "after"),
        (b"\x1b]52;c;ZXZpbA==\x1b\\after", "after"),
        (b"\x1bP+q544e\x1b\\after", "after"),
        (b"\x1b]0;never ended\nnext line", "0;never ended\nnext line"),
        (b"\x1b(B\x1b7\x1bcreset", "reset"),
        (b"\x1b\x1b[31m[2Jnested", "[2Jnested"),
        (b"\xc2\x9b31mC1\xc2\x9d0;x\xc2\x9cdone", "C1done"),
        (b"a\r\r\nb\rc\x08\x7f\x00", "a\nb\nc"),
        ("\u202egnp.exe".encode(), "gnp.exe"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"cut off \x1b[3", "cut off 3"),
    ],
)
def test_printable(hostile: bytes, shown: str) -> None:
    assert printable(hostile) == shown


_PIECES = st.sampled_from(
    [
        b"\x1b",
        b"[",
        b"]",
        b"P",
        b"\\",
        b"\x07",
        b"\xc2\x9b",
        b"\xc2\x90",
        b"\xc2\x9c",
        b"31",
        b"m",
        b"\r",
        b"\n",
        b"\xff",
        b"\t",
    ]
)


@pytest.mark.proves("I8")
@given(st.one_of(st.binary(max_size=300), st.lists(_PIECES, max_size=60).map(b"".join)))
def test_nothing_that_comes_out_can_drive_a_terminal(data: bytes) -> None:
    shown = printable(data)
    assert {c for c in shown if unicodedata.category(c) == "Cc"} <= {"\n", "\t"}


def hostile_floods() -> Iterator[bytes]:
    for piece in (
        b"\x1b[",
        b"\x1b]",
        b"\xc2\x90",
        b"\xc2\x9b1",
        b"\x1b[1;",
        b"\x1b  ",
        b"\x1b[ ",
        b"\r",
        b"\x1bP\n",
    ):
        yield piece * (KIB * 256 // len(piece))
    yield b"\x1b[" + b"1" * 256 * KIB
    yield b"\x1b]" + b"1" * 256 * KIB


@pytest.mark.timing
def test_a_hostile_console_costs_linear_time() -> None:
    for flood in hostile_floods():
        started = time.monotonic()
        printable(flood)
        assert time.monotonic() - started < 2, flood[:8]
