"""The host's side of the protocol against guests that lie, a counted number of frames.

`python -m tests.adversarial.fuzz.host_run --frames 1000000 --seed 1` prints a report and fails when
anything but the documented errors came out. A failure names the seed of its session: `--session SEED` has
that one again.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import resource
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio
import anyio.abc

from ramet.concurrency import alongside
from ramet.errors import GuestError, RametError
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.framing import FrameDecoder
from ramet.guest.messages import ExecRequest, IdentityRequest

from .lying_guest import LyingGuest, count_frames

SESSION_LIMIT_S: Final = 20.0
_SESSION_FRAMES: Final = 4000
_PATIENCE: Final = 20  # what a turn costs a guest besides: one that says nothing comes to its end too
_FRAME_BYTES: Final = 4000  # and one that says little with many bytes
_QUIET_S: Final = 0.01
_AT_ONCE: Final = 6
_IN_A_ROW: Final = 8
_SESSIONS_AT_ONCE: Final = 8
_FRAME_END: Final = re.compile(rb"[^\x7e]\x7e")


@dataclass
class Report:
    """What a run found. `frames` are those that a client's decoder was given, whole or not."""

    sessions: int = 0
    frames: int = 0
    wire_bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def text(self, seconds: float, rss_growth_kib: int) -> str:
        """For people."""
        told = ", ".join(f"{name} {count}" for name, count in self.errors.most_common())
        return (
            f"host: {self.frames} frames in {self.sessions} sessions, {self.wire_bytes / 1e6:.0f} MB, "
            f"{len(self.crashes)} crashes, {seconds:.1f} s\n"
            f"host: slowest session {self.slowest_s:.2f} s, "
            f"peak memory grew by {rss_growth_kib / 1024:.1f} MiB\n"
            f"host: outcomes: {told}"
        )


class CountedStream(anyio.abc.ByteStream):
    """The client's end, counting the frames that it reads."""

    def __init__(self, stream: anyio.abc.ByteStream, report: Report) -> None:
        self._stream = stream
        self._report = report
        self._last = b"\x7e"

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        data = await self._stream.receive(max_bytes)
        self._report.wire_bytes += len(data)
        self._report.frames += len(_FRAME_END.findall(self._last + data))
        self._last = data[-1:]
        return data

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def session(seed: int, report: Report) -> None:
    """One client and one lying guest over a real socket pair, until the guest has told all its lies.

    Whatever isn't a `RametError` comes out.
    """
    rng = random.Random(seed)
    lying = LyingGuest(rng, honesty=rng.choice((0.0, 0.5, 0.9)))
    connections_left = rng.choice((1, 1, 4))
    began = time.monotonic()

    @asynccontextmanager
    async def connect() -> AsyncIterator[anyio.abc.ByteStream]:
        nonlocal connections_left
        connections_left -= 1
        if connections_left < 0:
            raise GuestError("the guest hangs up for good")
        near, far = socket.socketpair()
        async with (
            await anyio.abc.UNIXSocketStream.from_socket(near) as stream,
            await anyio.abc.UNIXSocketStream.from_socket(far) as guest,
            alongside(partial(_lie, guest, lying, rng), finish=True),
        ):
            yield CountedStream(stream, report)
            await stream.aclose()

    with anyio.fail_after(SESSION_LIMIT_S):
        try:
            reopen = connect if connections_left > 1 else None
            async with (
                connect() as stream,
                AgentClient.connect(stream, timeout_s=2, resend_s=0.01, reopen=reopen) as agent,
            ):
                await _use(agent, random.Random(seed + 1), report)
        except GuestError as error:
            report.errors[type(error).__name__] += 1
    report.sessions += 1
    report.slowest_s = max(report.slowest_s, time.monotonic() - began)


async def _lie(guest: anyio.abc.ByteStream, lying: LyingGuest, rng: random.Random) -> None:
    """Answers, and talks unasked whenever the client is quiet; hangs up when it has sent enough."""
    decoder = FrameDecoder()
    left = _SESSION_FRAMES
    try:
        while left > 0:
            wire = b""
            with anyio.move_on_after(_QUIET_S):
                for frame in decoder.feed(await guest.receive()):
                    wire += lying.reply(frame)
            wire += lying.burst(rng.choice((0, 3, 40)) if wire else 200)
            left -= count_frames(wire) + len(wire) // _FRAME_BYTES + _PATIENCE
            await _send_in_pieces(guest, wire, rng)
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    finally:
        with anyio.CancelScope(shield=True):
            await guest.aclose()


async def _send_in_pieces(guest: anyio.abc.ByteStream, wire: bytes, rng: random.Random) -> None:
    at = 0
    while at < len(wire):
        size = rng.choice((1, 13, 1000, 100_000))
        await guest.send(wire[at : at + size])
        at += size


async def _use(agent: AgentClient, rng: random.Random, report: Report) -> None:
    """Several requests at once, as the engine makes them."""

    async def attempt(operation: Callable[[], Awaitable[object]]) -> None:
        try:
            await operation()
            report.errors["answered"] += 1
        except RametError as error:
            str(error).encode()  # a message has to be fit for people, whatever the guest sent
            report.errors[type(error).__name__] += 1

    async def several() -> None:
        for _ in range(_IN_A_ROW):
            await attempt(rng.choice(operations))

    async def stream() -> None:
        async with agent.start(ExecRequest(("cat",), stdin_open=True), timeout_s=0.5) as running:
            await running.write(bytes(rng.choice((10, 100_000))))
            async for _ in running.output():
                if rng.random() < 0.1:
                    return

    identity = IdentityRequest(5, bytes(range(32)), "fork", "0" * 32)
    operations: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: agent.ping(timeout_s=0.2),
        lambda: agent.identity(identity, timeout_s=0.2),
        lambda: run_exec(agent, ExecRequest(("cat",)), b"input" * 1000, 500_000),
        lambda: run_exec(agent, ExecRequest(("true",))),
        lambda: agent.spawn(ExecRequest(("true",)), timeout_s=0.2),
        lambda: agent.processes(timeout_s=0.2),
        lambda: agent.shutdown(timeout_s=0.2),
        stream,
    )
    async with anyio.create_task_group() as tasks:
        for _ in range(_AT_ONCE):
            tasks.start_soon(several)


async def run(frames: int, seed: int, report: Report) -> None:
    """Sessions, a few at once, until so many frames have been read. Crashes are counted, not raised."""
    rng = random.Random(seed)
    before = asyncio.all_tasks()

    async def several() -> None:
        while report.frames < frames:
            await one(rng.randrange(2**32), report)

    async with anyio.create_task_group() as tasks:
        for _ in range(_SESSIONS_AT_ONCE):
            tasks.start_soon(several)
    if left := asyncio.all_tasks() - before:
        report.crashes.append(f"left behind: {left}")


async def one(seed: int, report: Report) -> None:
    """One session; its crash, if it has one, goes into the report with its seed."""
    try:
        await session(seed, report)
    except Exception:
        report.crashes.append(f"--session {seed}:\n{traceback.format_exc()}")


def main() -> int:
    """The counted run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--session", type=int, help="only this one")
    options = parser.parse_args()
    report = Report()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    if options.session is not None:
        anyio.run(one, options.session, report)
    else:
        anyio.run(run, options.frames, options.seed, report)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    print(report.text(time.monotonic() - began, grown_kib))
    print("\n".join(report.crashes), end="")
    return 1 if report.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
