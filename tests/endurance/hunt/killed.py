"""An operation in a process of its own, which is killed in the middle: after a time, or at a point of
`tests.endurance.crash.injector`.

`python -m tests.endurance.hunt.killed` is what these processes are forked off: it has imported everything,
so that one costs some milliseconds. It takes orders on standard input, one at a time, and ends with that.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

import anyio
import anyio.to_thread
import msgspec

import ramet
from tests.endurance.crash.injector import Points
from tests.endurance.hunt.operations import Operation, perform

LIMIT_S: Final = 120.0
_ANSWER_BYTES: Final = 60000
"""Fits into a pipe, so that nobody need read before the process has ended."""


class Ended(NamedTuple):
    """How it went: `done`, `killed`, or `failed` with what it said. `points` is how many it passed, if it
    lived to say so.
    """

    how: str
    said: str = ""
    points: int = 0


class Order(msgspec.Struct, frozen=True):
    """An operation, and when it is killed: at a point (0: at none), after so many seconds."""

    home: str
    operation: Operation
    point: int
    after_s: float


class Killer:
    """Runs operations in processes that are killed. Used with `with`."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.endurance.hunt.killed"],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stdin, stdout = self._pipes()
        stdin.close()
        try:
            self._server.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        stdout.close()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        return self._server.stdin, self._server.stdout

    async def run(
        self, home: Path, operation: Operation, *, point: int = 0, after_s: float | None = None
    ) -> Ended:
        """Run it in a process that kills itself at that point, or is killed after that time; 0 and None:
        never.
        """
        order = Order(str(home), operation, point, LIMIT_S if after_s is None else after_s)
        return await anyio.to_thread.run_sync(self._ask, order, after_s is None)

    def _ask(self, order: Order, to_the_end: bool) -> Ended:
        stdin, stdout = self._pipes()
        stdin.write(msgspec.json.encode(order) + b"\n")
        stdin.flush()
        readable, _, _ = select.select([stdout], [], [], LIMIT_S * 2)
        line = stdout.readline() if readable else b""
        if not line:
            return Ended("failed", "no answer from the process that it is forked off")
        ended = Ended(*json.loads(line))
        if ended.how == "late" and to_the_end:
            return Ended("failed", f"it took more than {LIMIT_S:g} s")
        return Ended("killed") if ended.how == "late" else ended


def _operate(order: Order) -> Ended:
    points = Points(order.point)

    async def run() -> None:
        async with ramet.Host(order.home) as host:
            await perform(host, order.operation)

    points.install()
    try:
        anyio.run(run)
    except BaseException:
        return Ended("failed", traceback.format_exc()[-_ANSWER_BYTES // 4 :])
    return Ended("done", points=len(points.seen))


def _in_a_process(order: Order) -> Ended:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            os.write(theirs, json.dumps(_operate(order)).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        pidfd = os.pidfd_open(child)
        began = time.monotonic()
        in_time, _, _ = select.select([pidfd], [], [], order.after_s)
        os.close(pidfd)
        if not in_time:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # A VMM that was being started may have inherited the other end: what is there is all there is.
        os.set_blocking(answer.fileno(), False)
        said = answer.read() or b""
    if said:
        return Ended(*json.loads(said))
    return Ended("killed" if in_time else "late", f"{time.monotonic() - began:.3f}")


def _serve() -> None:
    # Imported now, so that the points are the operation's and not Python's.
    import ramet.api.host
    import ramet.engine.maintenance.worker  # noqa: F401

    for line in sys.stdin.buffer:
        ended = _in_a_process(msgspec.json.decode(line, type=Order))
        sys.stdout.buffer.write(json.dumps(ended).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
