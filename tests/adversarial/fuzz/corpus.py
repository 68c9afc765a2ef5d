"""The agent's seed inputs: scripts of valid sessions, in the form that `agent/target.c` reads.

`python -m tests.adversarial.fuzz.corpus` writes them to `tests/adversarial/fuzz/corpus` anew. The
fuzzer makes the rest out of them.
"""

from __future__ import annotations

import enum
import signal
from pathlib import Path
from typing import Final

from ramet.guest.fields import put, put_number, put_text
from ramet.guest.framing import encode_frame
from ramet.guest.messages import ExecFlag, Message

DIRECTORY: Final = Path(__file__).parent / "corpus"


class Step(enum.IntEnum):
    """The low four bits of a step's first octet; the high ones are the port. For CONNECT they are who comes:
    a client of the UNIX socket, the host over vsock, a program of the guest over vsock. For FILE they are
    which: hosts, passwd, group, a bundle of certificates.
    """

    RAW = 0
    FRAME = 1
    FIELDS = 2
    LARGE = 3
    SAYS = 4
    READS = 5
    ENDS = 6
    EVENT = 7
    REPORTS = 8
    ROOM = 9
    ROOMY = 10
    HANG_UP = 11
    ADVANCE = 12
    FAIL = 13
    FILE = 14
    CONNECT = 15


def raw(data: bytes, port: int = 0, *, overtakes: bool = False) -> bytes:
    """Octets as they arrive; `overtakes`: before the guest hears that there is somebody who sent them."""
    return bytes([Step.RAW | port << 4 | overtakes << 7]) + len(data).to_bytes(2, "little") + data


def frame(kind: Message, stream: int, payload: bytes = b"", port: int = 0) -> bytes:
    """A frame that the target encodes."""
    return bytes([Step.FRAME | port << 4, kind, stream]) + len(payload).to_bytes(2, "little") + payload


def fields(kind: Message, stream: int, *values: tuple[int, bytes], port: int = 0) -> bytes:
    """A frame whose fields the target encodes, lengths included."""
    listed = b"".join(bytes([tag, len(value)]) + value for tag, value in values)
    return bytes([Step.FIELDS | port << 4, kind, stream, len(values)]) + listed


def large(kind: Message, stream: int, length: int, value: int, port: int = 0) -> bytes:
    """A frame with `length` times the same octet."""
    return bytes([Step.LARGE | port << 4, kind, stream]) + (length - 1).to_bytes(2, "little") + bytes([value])


def says(command: int, which: int, length: int, value: int = 0x7E) -> bytes:
    """A command writes."""
    return bytes([Step.SAYS, command, which]) + length.to_bytes(2, "little") + bytes([value])


def reads(command: int, length: int) -> bytes:
    """A command reads so much, or closes its input when `length` is 0."""
    return bytes([Step.READS, command]) + length.to_bytes(2, "little")


def ends(command: int, status: int) -> bytes:
    """A command ends with this wait status; 0x100 on top: its children's ends of the pipes are closed too."""
    return bytes([Step.ENDS, command]) + status.to_bytes(2, "little")


def small(step: Step, number: int = 0, width: int = 0, port: int = 0) -> bytes:
    """A step with one number or none."""
    return bytes([step | port << 4]) + number.to_bytes(width, "little")


def file(which: int, text: bytes) -> bytes:
    """A file of the guest."""
    return small(Step.FILE, len(text), 1, port=which) + text


CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n"
REPORTS: Final = small(Step.REPORTS)


def hello(port: int = 0) -> bytes:
    """A session begins."""
    return fields(Message.HELLO, 0, (1, bytes(range(16))), (2, b"\1\0"), port=port)


def resumable(port: int, count: int | None = None) -> bytes:
    """A session that can be resumed begins, or goes on for a client that has had so many frames."""
    had = [] if count is None else [(4, count.to_bytes(8, "little"))]
    return fields(
        Message.HELLO,
        0,
        (1, bytes(range(16))),
        (2, b"\1\0"),
        (3, b"token~}--------"[:16].ljust(16)),
        *had,
        port=port,
    )


def acknowledge(port: int, count: int) -> bytes:
    """ACK."""
    return fields(Message.ACK, 0, (1, count.to_bytes(8, "little")), port=port)


def execute(stream: int, *argv: str, flags: int = 0, port: int = 0) -> bytes:
    """EXEC, and the child's report."""
    arguments = [(1, word.encode()) for word in argv]
    return fields(Message.EXEC, stream, *arguments, (6, bytes([flags, 0, 0, 0])), port=port) + REPORTS


def u32(number: int) -> tuple[int, bytes]:
    """Field 1 with a u32."""
    return 1, number.to_bytes(4, "little")


def identity() -> bytes:
    """IDENTITY with all its fields."""
    return fields(
        Message.IDENTITY,
        3,
        (1, (7).to_bytes(8, "little")),
        (2, bytes(64)),
        (3, (1_700_000_000 * 10**9).to_bytes(8, "little")),
        (4, b"fork-1.example"),
        (5, b"0123456789abcdef" * 2),
    )


def scripts() -> dict[str, bytes]:
    """Every seed by name."""
    wire = (
        encode_frame(Message.HELLO, 0, put(1, bytes(16)) + put_number(2, 2, 1))
        + encode_frame(Message.PING, 1, b"~}~}")
        + encode_frame(Message.EXEC, 2, put_text(1, "cat") + put_number(6, 4, ExecFlag.STDIN))
        + encode_frame(Message.STDIN, 2, b"~" * 40)
        + encode_frame(Message.LIST, 3)
    )
    stop = ends(0, 0x100)
    return {
        "wire": raw(wire[:37]) + raw(wire[37:]) + REPORTS + raw(wire),
        "ping": hello() + frame(Message.PING, 1, b"0123456789abcdef"),
        "output": hello()
        + execute(1, "yes")
        + says(0, 0, 40_000)
        + says(0, 1, 9)
        + frame(Message.LIST, 2)
        + stop,
        "credit": hello()
        + execute(1, "yes")
        + says(0, 0, 65_535) * 6
        + fields(Message.CREDIT, 1, u32(300_000))
        + says(0, 0, 65_535)
        + stop,
        "stdin": hello()
        + execute(1, "cat", flags=ExecFlag.STDIN)
        + large(Message.STDIN, 1, 60_000, 0x7D)
        + reads(0, 50_000)
        + large(Message.STDIN, 1, 40_000, 0x41)
        + reads(0, 65_535)
        + frame(Message.STDIN_EOF, 1)
        + stop,
        "closed-input": hello()
        + execute(1, "true", flags=ExecFlag.STDIN)
        + reads(0, 0)
        + large(Message.STDIN, 1, 50_000, 0)
        + stop,
        "signal": hello()
        + execute(1, "sleep", "9")
        + fields(Message.SIGNAL, 1, u32(signal.SIGTERM))
        + ends(0, 15),
        "time-limit": hello()
        + fields(
            Message.EXEC,
            1,
            (1, b"sleep"),
            (2, b"A=b"),
            (3, b"/tmp"),
            (4, b"user:10"),
            (5, b"\x64" + bytes(7)),
        )
        + REPORTS
        + small(Step.ADVANCE, 200, 3)
        + ends(0, 9),
        "detached": hello()
        + execute(1, "daemon", "x" * 200, flags=ExecFlag.DETACHED)
        + frame(Message.LIST, 2),
        "refused": hello() + small(Step.FAIL, 11, 1) + execute(1, "no-such-program") + stop,
        "identity": hello() + file(0, b"127.0.0.1 localhost\n::1 ") + identity() + hello() + identity(),
        "shutdown": hello()
        + fields(Message.SHUTDOWN, 1, (1, b"\1"))
        + fields(Message.SHUTDOWN, 2, (1, b"\0")),
        "overtaking": small(Step.HANG_UP)
        + small(Step.ROOM, 0, 2)
        + raw(wire[:40], overtakes=True)
        + raw(wire[40:], overtakes=True)
        + small(Step.ROOMY)
        + frame(Message.PING, 5, b"p")
        + small(Step.HANG_UP)
        + frame(Message.PING, 6, b"p"),
        "two-ports": hello()
        + hello(port=1)
        + execute(1, "yes")
        + execute(1, "cat", flags=ExecFlag.STDIN, port=1)
        + says(0, 0, 500)
        + frame(Message.STDIN, 1, b"text", port=1)
        + identity()
        + stop,
        "hang-up": hello(port=2)
        + execute(1, "yes", port=2)
        + says(0, 0, 60_000)
        + small(Step.HANG_UP, port=2)
        + small(Step.CONNECT)
        + hello(port=2)
        + frame(Message.LIST, 1, port=2)
        + stop,
        "vsock": small(Step.HANG_UP, port=2)
        + small(Step.CONNECT, port=2)
        + small(Step.CONNECT, port=1)
        + hello(port=2)
        + execute(1, "yes", port=2)
        + stop,
        "resumed": resumable(2)
        + execute(1, "cat", flags=ExecFlag.STDIN, port=2)
        + says(0, 0, 60_000)
        + acknowledge(2, 1)
        + small(Step.ROOM, 5000, 2, port=2)
        + says(0, 0, 60_000)
        + small(Step.HANG_UP, port=2)
        + says(0, 1, 60_000)
        + small(Step.CONNECT, port=1)
        + resumable(2, 3)
        + frame(Message.STDIN, 1, b"text", port=2)
        + small(Step.CONNECT, port=1)
        + resumable(3, 4)
        + stop
        + acknowledge(3, 6),
        "never-resumed": resumable(2)
        + execute(1, "yes", port=2)
        + says(0, 0, 60_000) * 6
        + small(Step.HANG_UP, port=2)
        + small(Step.ADVANCE, 30_001, 3)
        + small(Step.CONNECT)
        + resumable(2, 1)
        + frame(Message.PING, 1, b"p" * 200, port=2) * 3
        + acknowledge(2, 9)
        + frame(Message.BYE, 0, port=2)
        + stop,
        "resumed-elsewhere": resumable(2)
        + execute(1, "yes", port=2)
        + small(Step.HANG_UP, port=2)
        + hello()
        + identity()
        + small(Step.CONNECT)
        + resumable(2, 0)
        + stop,
        "slow-host": hello()
        + execute(1, "yes")
        + small(Step.ROOM, 0, 2)
        + says(0, 0, 65_535) * 4
        + frame(Message.PING, 2, b"p" * 200) * 3
        + small(Step.ROOM, 300, 2)
        + small(Step.ROOMY)
        + stop,
        "main": hello()
        + execute(1, "init", flags=ExecFlag.MAIN)
        + ends(0, 0x7F00)
        + fields(Message.EXEC, 2, (1, b"db"), (3, b"/a/b"), (6, b"\x08\0\0\0"), (7, b"\3\0\0\0"), (4, b"app"))
        + REPORTS
        + execute(3, "second", flags=ExecFlag.MAIN)
        + fields(Message.SHUTDOWN, 4, (1, b"\0"), (2, b"\x64\0\0\0"))
        + small(Step.ADVANCE, 200, 3)
        + frame(Message.PING, 5, b"p")
        + stop,
        "main-exit": hello()
        + execute(1, "sh", flags=ExecFlag.MAIN | ExecFlag.STDIN)
        + says(0, 0, 60)
        + ends(0, 0x300),
        "users": hello()
        + file(1, b"root:x:0:0::/root:/bin/sh\n\nbad\nuser:x:1000:1000::/home/user\nno end:x:7:7::/")
        + file(2, b"root:x:0:\nwheel:x:10:root,user\nuser:x:1000:\na:b:c:user,user\n:::")
        + b"".join(
            fields(Message.EXEC, number, (1, b"id"), (4, user)) + REPORTS
            for number, user in enumerate(
                (b"user", b"1000:wheel", b"nobody", b":", b"9:9", b"user:x", b"no end"), 1
            )
        )
        + stop,
        "trust": hello()
        + file(3, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----")
        + fields(Message.TRUST, 1, (1, CERTIFICATE % b"BBBB"), (1, CERTIFICATE % b"AAAA"))
        + fields(Message.TRUST, 2, (1, CERTIFICATE % b"BBBB"))
        + fields(Message.TRUST, 3, (1, b"no certificate")),
        "grow": hello()
        + fields(Message.GROW, 1, (1, b"root"))
        + fields(Message.GROW, 2, (1, b"disk"), (1, b"x" * 64))
        + fields(Message.GROW, 3),
        "busy-stream": hello() + execute(1, "sleep") * 2 + ends(0, 9),
    }


def write(directory: Path = DIRECTORY) -> None:
    """Write the seeds into `directory`."""
    directory.mkdir(exist_ok=True)
    for name, script in scripts().items():
        (directory / name).write_bytes(script)


if __name__ == "__main__":
    write()
