from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import UsageError
from ramet.guest.framing import (
    PAYLOAD_MAX_BYTES,
    STUFFED_MAX_BYTES,
    Frame,
    FrameDecoder,
    encode_frame,
    stuff,
    unstuff,
)

# Mostly the two octets that mean something, so that every few bytes there is a decision to make.
octets = st.lists(st.one_of(st.sampled_from(b"\x7d\x7e\x5d\x5e"), st.integers(0, 255)), max_size=60).map(
    bytes
)
frames = st.builds(Frame, st.integers(0, 255), st.integers(0, 2**32 - 1), octets)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


def decode(data: bytes, cuts: list[int] | None = None) -> list[Frame]:
    decoder = FrameDecoder()
    return [frame for piece in pieces(data, cuts or []) for frame in decoder.feed(piece)]


@given(octets)
def test_stuffing_is_undone_and_leaves_no_flag(plain: bytes) -> None:
    stuffed = stuff(plain)
    assert b"\x7e" not in stuffed
    assert unstuff(stuffed) == plain


@pytest.mark.parametrize("wrong", [b"\x7d", b"ab\x7d", b"\x7dab", b"\x7d\x7d\x5d"])
def test_an_escape_of_nothing_is_no_text(wrong: bytes) -> None:
    assert unstuff(wrong) is None


@given(st.lists(frames, max_size=6), st.lists(st.integers(0), max_size=8))
def test_frames_survive_any_division_of_the_stream(sent: list[Frame], cuts: list[int]) -> None:
    assert decode(b"".join(encode_frame(*frame) for frame in sent), cuts) == sent


@given(st.lists(frames, min_size=1, max_size=4), st.integers(0), st.lists(frames, max_size=3))
def test_a_session_is_found_after_any_cut_of_the_one_before(
    before: list[Frame], cut: int, after: list[Frame]
) -> None:
    old = b"".join(encode_frame(*frame) for frame in before)
    old = old[: cut % (len(old) + 1)]
    received = decode(old + b"".join(encode_frame(*frame) for frame in after))
    assert received[len(received) - len(after) :] == after
    assert received[: len(received) - len(after)] == before[: len(received) - len(after)]


@given(octets, st.integers(0), frames)
def test_a_stream_joined_in_its_middle_is_found_again(garbage: bytes, cut: int, frame: Frame) -> None:
    tail = encode_frame(9, 9, garbage)
    assert decode(tail[cut % len(tail) :] + encode_frame(*frame))[-1] == frame


@given(st.binary(max_size=400), st.lists(st.integers(0), max_size=5))
def test_garbage_is_dropped_and_never_raises(garbage: bytes, cuts: list[int]) -> None:
    decode(garbage, cuts)
    decode(garbage.replace(b"a", b"\x7e").replace(b"b", b"\x7d"), cuts)


def test_a_frame_may_hold_the_limit_and_no_more() -> None:
    for payload in (b"\x7e" * PAYLOAD_MAX_BYTES, bytes(PAYLOAD_MAX_BYTES)):
        assert decode(encode_frame(1, 2, payload)) == [Frame(1, 2, payload)]
    with pytest.raises(UsageError, match="standard input"):
        encode_frame(1, 2, bytes(PAYLOAD_MAX_BYTES + 1))


def test_an_oversized_frame_is_dropped_without_being_kept() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"\x7e")
    for _ in range(100):
        assert decoder.feed(b"x" * 65_536) == []
        assert len(decoder._pending) <= STUFFED_MAX_BYTES
    good = Frame(1, 1, b"good")
    assert decoder.feed(encode_frame(*good)) == [good]


@given(frames, st.integers(-12, 12).filter(bool))
def test_a_length_that_does_not_fit_is_no_frame(frame: Frame, off: int) -> None:
    plain = unstuff(encode_frame(*frame)[1:-1])
    assert plain is not None
    wrong = plain[:8] + ((len(frame.payload) + off) % 2**32).to_bytes(4, "little") + plain[12:]
    assert decode(b"\x7e" + stuff(wrong) + b"\x7e") == []
