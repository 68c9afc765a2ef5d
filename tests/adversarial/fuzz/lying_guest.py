"""A guest that lies: an honest agent's answers, and what a hostile one makes of them.

Everything comes from one seeded generator, so a session that breaks something can be had again.
"""

from __future__ import annotations

import random
import re
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from ramet.guest.fields import Fields, put, put_number, put_text
from ramet.guest.framing import PAYLOAD_MAX_BYTES, Frame, encode_frame, stuff
from ramet.guest.messages import OUTPUT_WINDOW_BYTES, ExecFlag, Message
from ramet.guest.resumption import is_counted

_HEADER: Final = struct.Struct("<BBHII")
_PIECE: Final = re.compile(rb"[^\x7e]+")
_NOBODYS: Final = 1 << 20  # streams from here on belong to no request
_NUMBERS: Final = (0, 1, 2, 3, 4, 7, 255, 256, 65_535, 65_536, 2**31, 2**32 - 1)


def count_frames(wire: bytes) -> int:
    """How many pieces between flags a decoder has to judge."""
    return len(_PIECE.findall(wire))


class HonestGuest:
    """What an agent answers, frame by frame; its commands write a little and end when they are asked to."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._had = 0
        self._grace = rng.random() < 0.7

    def answers(self, frame: Frame) -> list[Frame]:
        """The answers to one frame of a client."""
        stream = frame.stream
        self._had += is_counted(frame.type)
        match frame.type:
            case Message.HELLO:
                return [Frame(Message.WELCOME, 0, self._welcome(Fields(frame.payload)))]
            case Message.ACK:
                return [Frame(Message.ACKED, 0, put_number(1, 8, self._had))]
            case Message.PING:
                clocks = put_number(2, 8, 10**9) + put_number(3, 8, 10**18)
                return [Frame(Message.PONG, stream, put(1, frame.payload) + clocks)]
            case Message.EXEC:
                started = Frame(Message.STARTED, stream, put_number(1, 4, self._rng.randrange(1, 2**32)))
                if Fields(frame.payload).number(6, 4) & ExecFlag.DETACHED:
                    return [started]
                return [started, *self._output(stream)]
            case Message.STDIN:
                return [Frame(Message.STDIN_CREDIT, stream, put_number(1, 4, len(frame.payload)))]
            case Message.STDIN_EOF:
                return [Frame(Message.EXIT, stream, put_number(1, 4, self._rng.randrange(256)))]
            case Message.CREDIT:
                return self._output(stream)
            case Message.SIGNAL:
                return [Frame(Message.EXIT, stream, put_number(2, 4, 9))]
            case Message.IDENTITY:
                asked = Fields(frame.payload)
                same = [put(tag, asked.one(tag)) for tag in (1, 5)]
                name = put(3, asked.one(4)) + put(4, asked.one(5))
                rest = put_number(5, 8, asked.number(3, 8)) + put_text(6, "10.0.0.1") + put_text(6, "fd00::1")
                return [
                    Frame(Message.IDENTITY_DONE, stream, same[0] + put(2, bytes(range(16))) + name + rest)
                ]
            case Message.LIST:
                one = put_number(1, 4, 7) + put_text(2, "sleep") + put_number(3, 1, 0) + put_number(4, 1, 1)
                return [Frame(Message.LIST_DONE, stream, put(1, one) * self._rng.randrange(4))]
            case Message.SHUTDOWN:
                return [Frame(Message.SHUTDOWN_DONE, stream, b"")]
        return []

    def _welcome(self, hello: Fields) -> bytes:
        welcome = put(1, hello.one(1)) + _WELCOME
        if not (self._grace and hello.all(3)):
            return welcome
        welcome += put_number(6, 4, 30_000)
        if hello.all(4):
            return welcome + put_number(7, 8, self._had)
        self._had = 0
        return welcome

    def _output(self, stream: int) -> list[Frame]:
        sizes = [self._rng.choice((1, 10, 300, 5000)) for _ in range(self._rng.randrange(4))]
        return [
            Frame(self._rng.choice((Message.STDOUT, Message.STDERR)), stream, b"~o}" * (size // 3 + 1))
            for size in sizes
        ]


_WELCOME: Final = put_number(2, 2, 1) + put_text(3, "0.1.0") + put_number(4, 8, 1) + put_number(5, 2, 8)


class LyingGuest:
    """Answers as an honest guest does, then does something to it. `honesty` is how often it doesn't."""

    def __init__(self, rng: random.Random, *, honesty: float = 0.3) -> None:
        self.honest = HonestGuest(rng)
        self._rng = rng
        self._honesty = honesty
        self._seen: deque[Frame] = deque(maxlen=32)
        every: tuple[Callable[[list[Frame]], bytes], ...] = (
            self._flipped,
            self._cut,
            self._doubled,
            self._reordered,
            self._withheld,
            self._wrong_length,
            self._wrong_field_length,
            self._wrong_type,
            self._wrong_stream,
            self._credit_breach,
            self._many_fields,
            self._ended_early,
            self._single_octets,
            self._stale,
            self._noise,
            self._strange_values,
            self._wrong_counts,
        )
        self._on_living_streams = rng.random() < 0.3
        # Only some in one session: most lies end it, and what comes after the milder ones is to be seen too.
        self._twists = rng.sample(every, rng.choice((1, 2, 4, len(every))))

    def reply(self, frame: Frame) -> bytes:
        """What goes over the wire in answer to one frame of a client."""
        answers = self.honest.answers(frame)
        self._seen.extend(answers)
        # A session has to begin before there is anything to break.
        if self._rng.random() < (0.95 if frame.type == Message.HELLO else self._honesty):
            return _wire(answers)
        return self._rng.choice(self._twists)(answers)

    def burst(self, frames: int) -> bytes:
        """Unasked for: about that many frames, most of them nearly right."""
        parts = []
        while frames > 0:
            some = [self._any() for _ in range(min(frames, self._rng.randrange(1, 4)))]
            parts.append(_wire(some) if self._rng.random() < 0.2 else self._rng.choice(self._twists)(some))
            frames -= 1 + count_frames(parts[-1])
        return b"".join(parts)

    def _any(self) -> Frame:
        if self._seen and self._rng.random() < 0.7:
            frame = self._rng.choice(self._seen)
        else:
            payload = self._rng.randbytes(self._rng.choice((0, 4, 9, 40, 500)))
            frame = Frame(self._rng.randrange(256), self._rng.randrange(1, 50), payload)
        return frame if self._on_living_streams else frame._replace(stream=frame.stream + _NOBODYS)

    def _flipped(self, frames: list[Frame]) -> bytes:
        wire = bytearray(_wire(frames))
        for _ in range(self._rng.randrange(1, 4)):
            if wire:
                wire[self._rng.randrange(len(wire))] ^= 1 << self._rng.randrange(8)
        return bytes(wire)

    def _cut(self, frames: list[Frame]) -> bytes:
        wire = _wire(frames)
        return wire[: self._rng.randrange(len(wire) + 1)]

    def _doubled(self, frames: list[Frame]) -> bytes:
        return _wire([frame for frame in frames for _ in range(self._rng.randrange(1, 4))])

    def _reordered(self, frames: list[Frame]) -> bytes:
        mixed = [*frames, *self._seen]
        return _wire(self._rng.sample(mixed, len(mixed)))

    def _withheld(self, frames: list[Frame]) -> bytes:
        return b""

    def _wrong_length(self, frames: list[Frame]) -> bytes:
        parts = []
        for frame in frames:
            length = self._rng.choice((*_NUMBERS, len(frame.payload) + self._rng.randrange(-3, 4))) % 2**32
            parts.append(
                b"\x7e"
                + stuff(_HEADER.pack(frame.type, 0, 0, frame.stream, length) + frame.payload)
                + b"\x7e"
            )
        return b"".join(parts)

    def _wrong_field_length(self, frames: list[Frame]) -> bytes:
        twisted = []
        for frame in frames:
            payload = bytearray(frame.payload)
            if len(payload) >= 5:
                payload[1:5] = self._number().to_bytes(4, "little")
            twisted.append(frame._replace(payload=bytes(payload)))
        return _wire(twisted)

    def _wrong_type(self, frames: list[Frame]) -> bytes:
        return _wire([frame._replace(type=self._rng.randrange(256)) for frame in frames])

    def _wrong_stream(self, frames: list[Frame]) -> bytes:
        return _wire([frame._replace(stream=self._number()) for frame in frames])

    def _credit_breach(self, frames: list[Frame]) -> bytes:
        stream = frames[0].stream if frames else 1
        if self._rng.random() < 0.5:
            return encode_frame(Message.STDIN_CREDIT, stream, put_number(1, 4, 2**32 - 1))
        size = self._rng.choice((1, PAYLOAD_MAX_BYTES))
        return encode_frame(Message.STDOUT, stream, bytes(size)) * min(OUTPUT_WINDOW_BYTES // size + 1, 300)

    def _many_fields(self, frames: list[Frame]) -> bytes:
        tag = self._rng.randrange(8)
        value = put(tag, self._rng.randbytes(self._rng.choice((0, 1, 4, 8))))
        payload = value * (PAYLOAD_MAX_BYTES // len(value))
        return _wire([frame._replace(payload=payload) for frame in frames[:1]])

    def _ended_early(self, frames: list[Frame]) -> bytes:
        stream = frames[0].stream if frames else 1
        error = put_number(1, 4, self._number()) + put(2, self._rng.randbytes(self._rng.choice((5, 600))))
        ends = (Frame(Message.EXIT, stream, put_number(1, 4, 0)), Frame(Message.ERROR, stream, error))
        return _wire([self._rng.choice(ends), *frames])

    def _single_octets(self, frames: list[Frame]) -> bytes:
        stream = frames[0].stream if frames else 1
        pair = encode_frame(Message.STDOUT, stream, b"o") + encode_frame(Message.STDERR, stream, b"e")
        return pair * self._rng.randrange(1, 100)

    def _stale(self, frames: list[Frame]) -> bytes:
        return _wire([self._rng.choice(self._seen) for _ in range(3) if self._seen] + frames)

    def _noise(self, frames: list[Frame]) -> bytes:
        kinds: tuple[Callable[[], bytes], ...] = (
            lambda: self._rng.randbytes(self._rng.randrange(200)),
            lambda: b"\x7e" * self._rng.randrange(1, 500),
            lambda: b"\x7d" * self._rng.randrange(1, 50),
            lambda: b"a\x7e" * self._rng.randrange(1, 300),
            lambda: bytes(self._rng.choice((70_000, 140_000, 300_000))),
        )
        return self._rng.choice(kinds)() + _wire(frames)

    def _strange_values(self, frames: list[Frame]) -> bytes:
        stream = frames[0].stream if frames else 1
        strange = b"".join(
            put(
                tag, self._rng.choice((b"", b"\x1b[2J\0\xff", bytes(8), b"\xff" * 4, self._rng.randbytes(16)))
            )
            for tag in self._rng.sample(range(8), 4)
        )
        return encode_frame(self._rng.randrange(0x81, 0x90), stream, strange)

    def _wrong_counts(self, frames: list[Frame]) -> bytes:
        count = self._rng.choice((0, self.honest._had + self._rng.randrange(-3, 4), *_NUMBERS, 2**64 - 1))
        return encode_frame(Message.ACKED, 0, put_number(1, 8, max(0, count))) + _wire(frames)

    def _number(self) -> int:
        return self._rng.choice(_NUMBERS)


def _wire(frames: list[Frame]) -> bytes:
    return b"".join(encode_frame(*frame) for frame in frames)
