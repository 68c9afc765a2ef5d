"""The agent's C framing against the host's Python framing: they must agree on every stream."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import ProtocolError
from ramet.guest.fields import Fields, put
from ramet.guest.framing import FRAME_MAX_BYTES, Frame, FrameDecoder, encode_frame

from .conftest import shared_library
from .test_framing import frames, octets


class CFrame(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint8),
        ("stream", ctypes.c_uint32),
        ("payload", ctypes.POINTER(ctypes.c_char)),
        ("length", ctypes.c_uint32),
    )


class CDecoder(ctypes.Structure):
    _fields_ = (
        ("buffer", ctypes.c_void_p),
        ("length", ctypes.c_uint32),
        ("escaped", ctypes.c_bool),
        ("damaged", ctypes.c_bool),
    )


class CField(ctypes.Structure):
    _fields_ = (("tag", ctypes.c_uint8), ("length", ctypes.c_uint32), ("value", ctypes.c_void_p))


class CReader(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("end", ctypes.c_void_p))


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = shared_library(tmp_path_factory.mktemp("wire"), "link/wire.c", option="-ffreestanding")
    loaded = ctypes.CDLL(str(library))
    loaded.wire_decode.restype = ctypes.c_size_t
    loaded.wire_encode.restype = ctypes.c_size_t
    return loaded


def decode_in_c(wire: ctypes.CDLL, data: bytes) -> list[Frame]:
    buffer = ctypes.create_string_buffer(FRAME_MAX_BYTES + 1)
    decoder, frame, complete = CDecoder(), CFrame(), ctypes.c_bool()
    wire.wire_decoder_init(ctypes.byref(decoder), buffer)
    at, found = 0, []
    while at < len(data):
        rest = data[at:]
        at += wire.wire_decode(
            ctypes.byref(decoder),
            rest,
            ctypes.c_size_t(len(rest)),
            ctypes.byref(frame),
            ctypes.byref(complete),
        )
        if complete.value:
            found.append(Frame(frame.type, frame.stream, frame.payload[: frame.length]))
    return found


@given(st.lists(st.one_of(octets, frames.map(lambda frame: encode_frame(*frame))), max_size=6))
def test_both_decoders_see_the_same_frames(wire: ctypes.CDLL, parts: list[bytes]) -> None:
    stream = b"".join(parts)
    assert decode_in_c(wire, stream) == FrameDecoder().feed(stream)


@given(frames)
def test_both_encoders_write_the_same(wire: ctypes.CDLL, frame: Frame) -> None:
    out = ctypes.create_string_buffer(2 * FRAME_MAX_BYTES + 2)
    size = wire.wire_encode(out, frame.type, ctypes.c_uint32(frame.stream), frame.payload, len(frame.payload))
    assert out.raw[:size] == encode_frame(*frame)


@pytest.mark.parametrize("length", [65_535, 65_536, 65_537, 70_000, 200_000])
def test_both_draw_the_same_limit(wire: ctypes.CDLL, length: int) -> None:
    plain = b"\x01\0\0\0\x02\0\0\0" + length.to_bytes(4, "little") + b"x" * length
    stream = b"\x7e" + plain + b"\x7e" + encode_frame(3, 4, b"next")
    received = decode_in_c(wire, stream)
    assert received == FrameDecoder().feed(stream)
    assert len(received) == (2 if length <= 65_536 else 1)


@given(
    st.one_of(
        octets, st.lists(st.tuples(st.integers(0, 255), octets)).map(lambda f: b"".join(put(*e) for e in f))
    )
)
def test_both_read_the_same_fields(wire: ctypes.CDLL, payload: bytes) -> None:
    memory = ctypes.create_string_buffer(payload, max(1, len(payload)))
    start = ctypes.addressof(memory)
    reader, field, read = CReader(start, start + len(payload)), CField(), []
    while (more := wire.wire_next(ctypes.byref(reader), ctypes.byref(field))) > 0:
        read.append((field.tag, ctypes.string_at(field.value, field.length)))
    try:
        fields = Fields(payload)
    except ProtocolError:
        assert more == -1
    else:
        assert more == 0
        assert sum(len(fields.all(tag)) for tag in {tag for tag, _ in read}) == len(read)
        assert all(value in fields.all(tag) for tag, value in read)
