"""The state that resumes a session over another connection: the frames that the last may have lost.

Source: `docs/reference/protocol.md`, "Resumption". Both sides count the frames of a session. At its
resumption each tells the number of frames that it has received, and the other sends the rest again: nothing
is lost, doubled or reordered, regardless of where the connection was cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import anyio.abc

from ramet.errors import ProtocolError
from ramet.guest.messages import Message
from ramet.units import MIB

OpenStream = Callable[[], AbstractAsyncContextManager[anyio.abc.ByteStream]]
"""Makes a stream to a guest's agent, each time that it is called."""

ACK_BYTES: Final = 16_384
"""Bytes in one direction after which an acknowledgement is due.

With ten times that unacknowledged, commands wait.
"""
QUIET_S: Final = 0.5
"""Silence after which the guest is asked for a frame while a request is open.

A VMM that saves its state may cut a connection in the guest alone: the host's end learns of it when it sends
something.
"""
LONGEST_QUIET_S: Final = 10.0
"""Longest time between two questions to a silent guest: a paused guest gets few of them.

Shorter than an agent's wait for its client.
"""
RESUME_LIMIT_S: Final = 20.0
"""For another connection and its handshake. The agent waits for longer."""
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.5
_TRIES: Final = 8
_HASTY_S: Final = 0.1
_KEPT_MAX_BYTES: Final = 8 * MIB

_UNCOUNTED: Final = frozenset(
    {Message.HELLO, Message.WELCOME, Message.ACK, Message.ACKED, Message.BYE},
)


def is_counted(type_: int) -> bool:
    """Tell whether frames of that type belong to the session, and not to the connection that carries it."""
    return type_ not in _UNCOUNTED


class Outbox:
    """The counted frames that were sent and that the guest hasn't acknowledged, in order."""

    def __init__(self) -> None:
        self.kept_bytes = 0
        self._frames: deque[bytes] = deque()
        self._acknowledged = 0

    def add(self, frame: bytes) -> None:
        """Keep the next frame, which is about to be sent.

        Raises `ProtocolError` when too much is unacknowledged: a guest that takes frames has to acknowledge
        them.
        """
        if self.kept_bytes > _KEPT_MAX_BYTES:
            raise ProtocolError(f"the guest took {self.kept_bytes} bytes and acknowledged none of them")
        self._frames.append(frame)
        self.kept_bytes += len(frame)

    def take_back(self) -> None:
        """Drop the last frame, which wasn't sent as a whole: the guest doesn't count it."""
        if self._frames:
            self.kept_bytes -= len(self._frames.pop())

    def acknowledge(self, count: int) -> None:
        """Note that the guest has received `count` frames of the session.

        Raises `ProtocolError` if it can't have.
        """
        sent = self._acknowledged + len(self._frames)
        if not self._acknowledged <= count <= sent:
            raise ProtocolError(
                f"the guest has had {count} frames, it says, of {self._acknowledged} to {sent} possible"
            )
        for _ in range(count - self._acknowledged):
            self.kept_bytes -= len(self._frames.popleft())
        self._acknowledged = count

    def frames(self) -> list[bytes]:
        """List the frames that the guest may not have received."""
        return list(self._frames)

    def restart(self) -> None:
        """Another session: nothing was sent in it."""
        self._frames.clear()
        self.kept_bytes = self._acknowledged = 0


class Patience:
    """Limits on replacing a lost connection, by number and time: a guest may hang up again and again."""

    def __init__(self) -> None:
        self._tries = 0
        self._hasty = False

    def ended(self, *, seconds: float, welcomed: bool) -> None:
        """Note the end of a connection after that long.

        A connection that the agent answered restarts the count.
        """
        self._hasty = seconds < _HASTY_S
        if welcomed:
            self._tries = 0

    def next_pause_s(self) -> float | None:
        """Return the seconds to wait before the next try; None after the last."""
        self._tries += 1
        if self._tries > _TRIES:
            return None
        return min(_FIRST_PAUSE_S * 2.0 ** (self._tries - 1), _LONGEST_PAUSE_S) if self._hasty else 0.0
