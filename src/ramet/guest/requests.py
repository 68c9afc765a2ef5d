"""Requests on a connection to the agent: who receives what, and which may be sent again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import anyio
import anyio.abc
import anyio.lowlevel

from ramet.errors import GuestError, ProtocolError
from ramet.guest.fields import Fields
from ramet.guest.framing import Frame
from ramet.guest.messages import Message


class Receiver(Protocol):
    """The owner of a stream number. The reader calls both methods, which must not wait."""

    def receive(self, frame: Frame) -> None:
        """Take a frame of the stream. `ProtocolError` ends the whole connection."""

    def lost(self, error: GuestError) -> None:
        """Note that the connection has ended: no more frames will come."""


class Answer:
    """The receiver of a single answer. `done` is set when `payload` or `error` is there."""

    def __init__(self, expects: Message, what: str) -> None:
        self.payload = b""
        self.error: GuestError | None = None
        self.done = anyio.Event()
        self.repeat: tuple[Message, Callable[[], bytes]] | None = None
        self.sent_at_s = self.arrived_at_s = 0.0
        self.arrived_realtime_ns = 0
        self._expects = expects
        self._what = what

    def receive(self, frame: Frame) -> None:
        """Take the answer, or the guest's refusal."""
        self.arrived_at_s, self.arrived_realtime_ns = time.monotonic(), time.time_ns()
        if frame.type == Message.ERROR:
            _errno, text = decode_error(frame.payload)
            self.error = GuestError(f"the guest refused {self._what}: {text}")
        elif frame.type == self._expects:
            self.payload = frame.payload
        else:
            raise ProtocolError(f"the guest answered {self._what} with a frame of type {frame.type:#04x}")
        self.done.set()

    def lost(self, error: GuestError) -> None:
        """Note that no more frames will come.

        An answer that has arrived is valid, even if its caller hasn't read it yet: a guest that powers off
        says so with its last frame.
        """
        if self.done.is_set():
            return
        self.error = type(error)(f"{error.message} during {self._what}", hint=error.hint)
        self.done.set()


def is_repeatable(receiver: Receiver) -> bool:
    """Tell whether the request may be sent again over another stream."""
    return isinstance(receiver, Answer) and receiver.repeat is not None


def decode_error(payload: bytes) -> tuple[int, str]:
    """Decode the errno and the text of an ERROR."""
    fields = Fields(payload)
    return fields.number(1, 4), fields.text(2)
