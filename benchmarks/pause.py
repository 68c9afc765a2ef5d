"""How long a guest is paused when it is branched: by its VMM's own events, and by its missing heartbeats.

For each driver, size of RAM and kind of disk load: a fork of a template is branched again and again, with at
most about 1 MiB of memory changed since. A table on standard error, JSON on standard output.

    python benchmarks/pause.py
    python benchmarks/pause.py --driver qemu --memory 512M --disk busy --branches 50

`events` is from the VMM's own word that it has stopped to its own word that it goes on: QEMU's STOP and
RESUME, with its timestamps; in Firecracker's log the request to pause, and the end of its action `resume vm`.
`heartbeat` is the longest time around it without a sign of life from the guest, as another process has them,
which asks for the next 0.5 ms after each: QEMU's guest answers pings, the probe accepts connections (a save
of its state resets those that it has, and what is in flight in them); `beat` is the usual time between two.
`call` is what the engine says.

QEMU runs the built-in Linux image, Firecracker the probe. A busy disk: QEMU's guest writes to it past its
page cache without end; the probe is told to, sector after sector.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc
from qemu.qmp import EventListener

import ramet
from ramet import config
from ramet.drivers.qemu import monitor
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.messages import ExecRequest
from ramet.guest.ports import claim_port
from ramet.guest.vsock import connect_vsock
from ramet.system import sockets
from ramet.units import format_bytes

LIMIT_S: Final = 60.0
QUIET_S: Final = 0.3
BEAT_S: Final = 0.0005
LOST_S: Final = 0.25
ACCEPTED_S: Final = 0.005
BUSY: Final = (
    "while :; do dd if=/dev/zero of=/dev/vda bs=64k count=256 oflag=direct conv=notrunc 2> /dev/null; done"
)
COLUMNS: Final = ("events", "heartbeat", "call")


@dataclass
class Pauses:
    """What was measured of one configuration, in milliseconds, one number a branch."""

    driver: str
    memory: str
    disk: str
    events: list[float] = field(default_factory=list)
    heartbeat: list[float] = field(default_factory=list)
    call: list[float] = field(default_factory=list)
    beat_ms: float = 0.0
    changed_bytes: int = 0

    def summary(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "driver": self.driver,
            "memory": self.memory,
            "disk": self.disk,
            "branches": len(self.events),
            "changed_bytes": self.changed_bytes,
            "beat_ms": round(self.beat_ms, 2),
            **{f"{name}_ms": percentiles(getattr(self, name)) for name in COLUMNS},
        }


def percentiles(values: list[float]) -> dict[str, float]:
    """The median, nine of ten, and the longest."""
    ordered = sorted(values)
    ninth = ordered[min(len(ordered) - 1, -(-9 * len(ordered) // 10) - 1)]
    return {name: round(value, 2) for name, value in
            (("p50", statistics.median(ordered)), ("p90", ninth), ("max", ordered[-1]))}  # fmt: skip


async def measure(
    host: ramet.Host, driver: str, memory: str, disk: str, branches: int, *, heartbeats: bool = True
) -> Pauses:
    """Branch a guest that many times. Raises what the engine raises."""
    image = "builtin" if driver == "qemu" else "probe"
    base = await host.run(image, driver=driver, memory=memory, disks=["256M"], cold=True)
    await base.template()
    try:
        async with base.fork(1) as (source,):
            return await measure_branches(source, driver, memory, disk, branches, heartbeats=heartbeats)
    finally:
        await base.remove()


async def measure_branches(
    source: ramet.VM,
    driver: str,
    memory: str,
    disk: str,
    branches: int,
    *,
    heartbeats: bool = True,
    quiet_s: float = QUIET_S,
) -> Pauses:
    """As `measure`, of a guest that runs already."""
    ports = 8 if driver == "qemu" else 0
    made = Pauses(driver, memory, disk)
    windows: list[tuple[float, float]] = []
    with (
        stops_and_resumes() as events,
        disk_load(source, ports, busy=disk == "busy"),
        beating(source.directory, ports, wanted=heartbeats) as beats,
    ):
        if disk == "busy" and driver == "qemu":
            await source.spawn("sh", "-c", BUSY, console=False)
        await anyio.sleep(2 * quiet_s)
        for _ in range(branches):
            events.clear()
            since = time.time()
            async with source.fork(1) as (branch,):
                made.call.append(branch.receipt.timings_ms.pause)
                made.changed_bytes = max(made.changed_bytes, branch.receipt.memory.delta_bytes)
            # The first two are the source's; then its fork's goes on.
            pause = events[:2] if driver == "qemu" else firecracker_pause(source.directory, since)
            stopped, resumed = pause
            windows.append((stopped, resumed))
            made.events.append(1000 * (resumed - stopped))
            await anyio.sleep(quiet_s)
    stamps = beats()
    if len(stamps) > 1:
        gaps = [(stamps[i], stamps[i + 1]) for i in range(len(stamps) - 1)]
        made.beat_ms = 1000 * statistics.median(end - start for start, end in gaps)
        for stopped, resumed in windows:
            around = [end - start for start, end in gaps if end > stopped and start < resumed]
            made.heartbeat.append(1000 * max(around, default=0.0))
    return made


@contextmanager
def stops_and_resumes() -> Iterator[list[float]]:
    """When QEMUs that this process says something to have stopped and gone on meanwhile, by their own
    clocks, in seconds since 1970.
    """
    moments: list[float] = []
    begin = monitor.Monitor.__init__

    class Told(EventListener):
        async def put(self, event: Any) -> None:
            stamp = event["timestamp"]
            moments.append(stamp["seconds"] + stamp["microseconds"] / 1e6)

    def listening(self: monitor.Monitor, client: Any, *, who: str) -> None:
        begin(self, client, who=who)
        client.register_listener(Told(("STOP", "RESUME")))

    monitor.Monitor.__init__ = listening  # type: ignore[method-assign]
    try:
        yield moments
    finally:
        monitor.Monitor.__init__ = begin  # type: ignore[method-assign]


def firecracker_pause(directory: Path, since: float) -> tuple[float, float]:
    """The same of a Firecracker, from its log: the last pause that began after `since`."""
    stopped = resumed = 0.0
    for line in (directory / "vmm.log").read_text(errors="replace").splitlines():
        stamp, _, text = line.partition(" ")
        if '"/vm"' in text and "Paused" in text:
            stopped = moment(stamp)
        elif "'resume vm' VMM action" in text and stopped > since:
            resumed = moment(stamp)
    assert resumed > stopped > since, "Firecracker's log doesn't tell"
    return stopped, resumed


def moment(stamp: str) -> float:
    """Local time with nanoseconds, as Firecracker writes it."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*$", r"\1", stamp)).timestamp()


@contextmanager
def beating(directory: Path, ports: int, *, wanted: bool) -> Iterator[Any]:
    """Another process that asks the guest for a sign of life without end. What is yielded returns, after the
    block, when each came.
    """
    if not wanted:
        yield list
        return
    with asking("beats", directory, ports) as told:
        yield told


@contextmanager
def disk_load(source: ramet.VM, ports: int, *, busy: bool) -> Iterator[None]:
    """A probe is told from outside what to write."""
    if not busy or ports:
        yield
        return
    with asking("writes", source.directory, ports):
        yield


@contextmanager
def asking(what: str, directory: Path, ports: int) -> Iterator[Any]:
    """A process of its own, so that nothing that goes on in this one is taken for the guest's pause."""
    words = [sys.executable, __file__, "--ask", what, str(directory), str(ports)]
    answers: list[float] = []
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=out)
        try:
            yield lambda: answers
        finally:
            child.communicate(timeout=LIMIT_S)  # it ends when its standard input does
            out.seek(0)
            answers += json.loads(out.read() or b"[]")


async def ask(what: str, directory: Path, ports: int) -> None:
    """That process: what it has asked is answered, and when that was is printed in the end."""
    logging.disable()
    stamps: list[float] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(repeat, what, directory, ports, stamps)
        await anyio.to_thread.run_sync(sys.stdin.read)
        tasks.cancel_scope.cancel()
    print(json.dumps(stamps))


async def repeat(what: str, directory: Path, ports: int, stamps: list[float]) -> None:
    """Ask, and when a capture has reset the connection, connect again."""
    sector = 0
    while what == "beats" and not ports:
        if await is_accepted(directory):
            stamps.append(time.time())
            await anyio.sleep(BEAT_S)
    while True:
        with suppress(ramet.RametError, TimeoutError):
            async with session(directory, ports) as agent:
                while what == "beats":
                    await agent.ping(timeout_s=LIMIT_S)
                    stamps.append(time.time())
                    await anyio.sleep(BEAT_S)
                while True:
                    sector = (sector + 1) % 65536
                    with anyio.fail_after(LOST_S):
                        await run_exec(agent, ExecRequest(("bpoke", hex(sector), "1")))
        # What the guest was asked just before its state was saved, it never answers.


async def is_accepted(directory: Path) -> bool:
    """Whether the guest takes a connection at once."""
    stream = sockets.connect(directory, "vsock.sock")
    with stream, suppress(TimeoutError, OSError):
        with anyio.fail_after(ACCEPTED_S):
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(stream, b"CONNECT 1024\n")
            return (await loop.sock_recv(stream, 32)).startswith(b"OK ")
    return False


@asynccontextmanager
async def session(directory: Path, ports: int) -> AsyncIterator[AgentClient]:
    """A session with the agent of the guest whose VMM works in `directory`."""
    stream: AbstractAsyncContextManager[anyio.abc.ByteStream]
    stream = (
        claim_port(directory, ports, wait_s=LIMIT_S) if ports else connect_vsock(directory, wait_s=LIMIT_S)
    )
    async with stream as opened, AgentClient.connect(opened, timeout_s=LIMIT_S) as agent:
        yield agent


def row(made: Pauses) -> str:
    """A line of the table."""
    cells = [made.driver, made.memory, made.disk, format_bytes(made.changed_bytes), f"{made.beat_ms:.1f}"]
    for name in COLUMNS:
        values = getattr(made, name)
        cells.append(" / ".join(f"{value:.1f}" for value in percentiles(values).values()) if values else "-")
    return "| " + " | ".join(cells) + " |"


HEAD: Final = (
    "| driver | RAM | disk | changed | beat ms | events p50 / p90 / max ms | heartbeat | call |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


async def main(drivers: list[str], memories: list[str], disks: list[str], branches: int) -> None:
    print(HEAD, file=sys.stderr)
    summaries = []
    cache = config.cache_directory()
    with tempfile.TemporaryDirectory(prefix="pause-", dir=cache) as home:
        async with ramet.Host(home) as host:
            for driver in drivers:
                for memory in memories:
                    for disk in disks:
                        made = await measure(host, driver, memory, disk, branches)
                        print(row(made), file=sys.stderr, flush=True)
                        summaries.append(made.summary())
    print(json.dumps(summaries, indent=2))


def choose(value: str, everything: list[str]) -> list[str]:
    """One, or all."""
    return everything if value == "all" else [value]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--driver", default="all", choices=["all", "qemu", "firecracker"])
    parser.add_argument("--memory", default="all", help="512M, 4G, or both")
    parser.add_argument("--disk", default="all", choices=["all", "idle", "busy"])
    parser.add_argument("--branches", type=int, default=20)
    parser.add_argument("--ask", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        anyio.run(ask, given.ask[0], Path(given.ask[1]), int(given.ask[2]))
    else:
        anyio.run(
            main,
            choose(given.driver, ["firecracker", "qemu"]),
            choose(given.memory, ["512M", "4G"]),
            choose(given.disk, ["idle", "busy"]),
            given.branches,
        )
