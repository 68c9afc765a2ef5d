"""The meaning of frames: message types, their fields, and the requests and answers of the Python API.

Source: `docs/reference/protocol.md`, "Messages". Encoding takes what a caller of ramet gave; decoding takes
what a guest sent, and raises `ProtocolError` for anything that the tables don't allow.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from ramet.errors import ProtocolError, UsageError
from ramet.guest.fields import Fields, put, put_number, put_text, shown
from ramet.model.command import ExitStatus

PROTOCOL_VERSION: Final = 1
OUTPUT_WINDOW_BYTES: Final = 262_144
STDIN_WINDOW_BYTES: Final = 65_536
NONCE_BYTES: Final = 16
TOKEN_BYTES: Final = 16
COMMANDS_MAX: Final = 256
LAST_SIGNAL: Final = 64


class Message(enum.IntEnum):
    """Message types. The high bit says that it comes from the guest."""

    HELLO = 0x01
    PING = 0x02
    EXEC = 0x03
    STDIN = 0x04
    STDIN_EOF = 0x05
    SIGNAL = 0x06
    CREDIT = 0x07
    IDENTITY = 0x08
    LIST = 0x09
    SHUTDOWN = 0x0A
    ACK = 0x0B
    BYE = 0x0C
    CLOCK = 0x0D
    TRUST = 0x0E
    GROW = 0x10
    WELCOME = 0x81
    PONG = 0x82
    STARTED = 0x83
    STDOUT = 0x84
    STDERR = 0x85
    EXIT = 0x86
    STDIN_CREDIT = 0x87
    IDENTITY_DONE = 0x88
    LIST_DONE = 0x89
    SHUTDOWN_DONE = 0x8A
    ACKED = 0x8B
    CLOCK_DONE = 0x8D
    TRUST_DONE = 0x8E
    ERROR = 0x8F
    GROW_DONE = 0x90


class ExecFlag(enum.IntFlag):
    """Flags of EXEC."""

    DETACHED = 1
    STDIN = 2
    CONSOLE = 4
    MAIN = 8
    MAKE_CWD = 16


class StartStep(enum.IntEnum):
    """The step of a command's start that failed, in ERROR."""

    EXECVE = 1
    CWD = 2
    USER = 3
    SETUP = 4


def hello(nonce: bytes) -> bytes:
    """Encode the payload of a HELLO that begins a session; fields may follow it."""
    return put(1, nonce) + put_number(2, 2, PROTOCOL_VERSION)


@dataclass(frozen=True, slots=True)
class Welcome:
    """The agent's facts at the beginning of a session, or at its resumption.

    `grace_ms`: the milliseconds, in the guest's time, that the agent waits for a client that lost its
    connection; None: not at all. `received`: the session is resumed, and that many of the client's frames
    have arrived; None: the session is new.
    """

    version: int
    agent_version: str
    generation: int
    ports: int
    grace_ms: int | None = None
    received: int | None = None

    @classmethod
    def decode(cls, payload: bytes) -> tuple[bytes, Welcome]:
        """Decode the nonce that the WELCOME answers, and the rest."""
        fields = Fields(payload)
        nonce = fields.one(1, max_bytes=NONCE_BYTES)
        return nonce, cls(
            fields.number(2, 2),
            fields.text(3),
            fields.number(4, 8),
            fields.number(5, 2),
            fields.number_or_none(6, 4),
            fields.number_or_none(7, 8),
        )


@dataclass(frozen=True, slots=True)
class Pong:
    """The guest's clocks in nanoseconds, and how long the question and its answer took."""

    monotonic_ns: int
    realtime_ns: int
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """A command for the guest. `user` is as Docker writes one; `timeout_s` None means no limit.

    `stdin_open` gives it a pipe, else it reads `/dev/null`; `console` (detached commands only) shows its
    output there. `main` makes it the guest's main process, with whose end the guest ends: a missing `cwd` is
    made then, and `stop_signal` asks it to end (None: SIGTERM). `make_cwd` makes a missing `cwd` for any
    command.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    timeout_s: float | None = None
    stdin_open: bool = False
    console: bool = False
    main: bool = False
    stop_signal: int | None = None
    make_cwd: bool = False

    def encode(self, *, detached: bool = False) -> bytes:
        """Encode EXEC's payload. Raises `UsageError` for words that can't be a command."""
        if not self.argv or not self.argv[0]:
            raise UsageError("a command needs the name of a program")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise UsageError(f"a time limit of {self.timeout_s} s would end the command before it begins")
        parts = [put_text(1, argument) for argument in self.argv]
        for name, value in self.env.items():
            if not name or "=" in name:
                raise UsageError(f"{name!r} can't be the name of an environment variable")
            parts.append(put_text(2, f"{name}={value}"))
        if self.cwd is not None:
            parts.append(put_text(3, self.cwd))
        if self.user is not None:
            parts.append(put_text(4, self.user))
        if self.timeout_s is not None:
            parts.append(put_number(5, 8, max(1, round(self.timeout_s * 1000))))
        if self.stop_signal is not None:
            if not (self.main and 1 <= self.stop_signal <= LAST_SIGNAL):
                raise UsageError(f"a main process can't be stopped by signal {self.stop_signal}")
            parts.append(put_number(7, 4, self.stop_signal))
        flags = ExecFlag.MAIN if self.main else ExecFlag(0)
        flags |= ExecFlag.MAKE_CWD if self.make_cwd else ExecFlag(0)
        if detached:
            flags |= ExecFlag.DETACHED | (ExecFlag.CONSOLE if self.console else ExecFlag(0))
        elif self.stdin_open:
            flags |= ExecFlag.STDIN
        return b"".join([*parts, put_number(6, 4, flags)])


def started_pid(payload: bytes) -> int:
    """Return the process number in STARTED's payload."""
    pid = Fields(payload).number(1, 4)
    if pid == 0:
        raise ProtocolError("the guest started a process without a number")
    return pid


def exit_status(payload: bytes) -> ExitStatus:
    """Decode EXIT's payload."""
    fields = Fields(payload)
    exit_code, signal = fields.number_or_none(1, 4), fields.number_or_none(2, 4)
    if (exit_code is None) == (signal is None):
        raise ProtocolError("the guest's EXIT has to give either a code or a signal")
    # A shell takes 256 for 0, and 128 + n for a signal.
    if exit_code is not None and exit_code > 255:
        raise ProtocolError(f"the guest's EXIT gives a code of {exit_code}")
    if signal is not None and not 1 <= signal <= 127:
        raise ProtocolError(f"the guest's EXIT gives a signal of {signal}")
    return ExitStatus(exit_code, signal, bool(fields.number_or_none(3, 1)))


@dataclass(frozen=True, slots=True)
class IdentityRequest:
    """The identity that a fork is to get. `seed` has 32 to 512 random bytes; `machine_id` 32 hex digits."""

    generation: int
    seed: bytes
    hostname: str
    machine_id: str

    def encode(self, realtime_ns: int) -> bytes:
        """IDENTITY's payload with the time that the guest's clock shall be set to."""
        if not 32 <= len(self.seed) <= 512:
            raise UsageError(f"a seed has 32 to 512 bytes, not {len(self.seed)}")
        return b"".join(
            [
                put_number(1, 8, self.generation),
                put(2, self.seed),
                put_number(3, 8, realtime_ns),
                put_text(4, self.hostname),
                put_text(5, self.machine_id),
            ]
        )


@dataclass(frozen=True, slots=True)
class IdentityReply:
    """A fork's identity, as its guest read it back.

    `clock_error_ms` is the guest's clock minus the host's.
    """

    generation: int
    boot_random: bytes
    hostname: str
    machine_id: str
    clock_error_ms: float
    addresses: tuple[str, ...]

    @classmethod
    def decode(cls, payload: bytes, host_realtime_ns: int) -> IdentityReply:
        """Decode IDENTITY_DONE's payload, given the host's clock at the middle of the round trip."""
        fields = Fields(payload)
        boot_random = fields.one(2, max_bytes=16)
        if len(boot_random) != 16:
            raise ProtocolError(f"the guest's random proof has {len(boot_random)} bytes instead of 16")
        return cls(
            fields.number(1, 8),
            boot_random,
            fields.text(3, max_bytes=64),
            fields.text(4, max_bytes=32),
            (fields.number(5, 8) - host_realtime_ns) / 1e6,
            tuple(_addresses(fields.all(6)[:16])),
        )


def _addresses(values: Iterable[bytes]) -> Iterator[str]:
    for value in values:
        try:
            # A scope id (RFC 4007) may hold anything, control characters too, and means nothing outside.
            if b"%" in value:
                raise ValueError("a scope id")
            yield str(ipaddress.ip_address(value.decode("ascii")))
        except ValueError:
            raise ProtocolError(f"{shown(value[:64])!r} from the guest is not an address") from None


@dataclass(frozen=True, slots=True)
class GuestProcess:
    """A command that an agent started and that still runs; its argv may be shortened."""

    pid: int
    argv: tuple[str, ...]
    orphaned: bool
    detached: bool

    @classmethod
    def decode(cls, value: bytes) -> GuestProcess:
        """Decode a process field of LIST_DONE."""
        fields = Fields(value)
        argv = tuple(map(shown, fields.all(2)))
        return cls(fields.number(1, 4), argv, bool(fields.number(3, 1)), bool(fields.number(4, 1)))
