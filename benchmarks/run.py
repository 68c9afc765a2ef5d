"""One run: benchmarks one after another, each within its budget, in a home that is gone afterwards."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import anyio
import msgspec

import ramet
from benchmarks import guests
from benchmarks.figures import Figure, Ledger, Ratio
from ramet import config
from ramet.errors import NotFoundError, UnavailableError
from ramet.system import processes, spawn
from ramet.units import MIB

Number = TypeVar("Number", int, float)

FULL_S: Final = 530.0
QUICK_S: Final = 40.0
"""A whole run, page and plots not included."""


@dataclass(frozen=True)
class Plot:
    """A picture of one quantity: lines over the benchmark's axis, or a distribution for each who."""

    what: str
    title: str
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Benchmark:
    """What is measured, and for how long: once for each driver, within the budget each."""

    name: str
    title: str
    about: str
    measure: Callable[[Run, str], Awaitable[None]]
    budget_s: float
    drivers: tuple[str, ...] = guests.DRIVERS
    axis: str = ""
    """What the figures' x is: `forks`, `bytes of RAM`."""
    plots: tuple[Plot, ...] = ()

    @property
    def whole_s(self) -> float:
        """For all drivers."""
        return self.budget_s * max(1, len(self.drivers))


class Outcome(msgspec.Struct, kw_only=True):
    """What came out of one benchmark."""

    name: str
    seconds: float
    figures: list[Figure]
    ratios: list[Ratio]
    skipped: list[str]
    """What wasn't measured, and why; also what went wrong."""
    failed: bool = False


@dataclass
class Run:
    """What the benchmarks of one run share. `ledger` and `until` are the current one's."""

    host: ramet.Host
    scratch: Path
    quick: bool
    ledger: Ledger = field(default_factory=Ledger)
    until: float = 0.0
    _templates: dict[tuple[str, str], ramet.VM] = field(default_factory=dict)
    _floors: dict[str, guests.Floor] = field(default_factory=dict)

    @property
    def is_late(self) -> bool:
        """Whether the budget is used up."""
        return time.monotonic() > self.until

    def pick(self, full: Number, quick: Number) -> Number:
        """The number for this kind of run."""
        return quick if self.quick else full

    def rounds(self, full: int, quick: int = 2, *, least: int = 2) -> Iterator[int]:
        """So many rounds; fewer, but not fewer than `least`, when the budget is used up."""
        for number in range(self.pick(full, quick)):
            if number >= least and self.is_late:
                return
            yield number

    async def template(self, driver: str, memory: str = "512M") -> ramet.VM:
        """A template that has booted and done nothing else; it stays for the other benchmarks."""
        key = (driver, memory)
        if key not in self._templates:
            vm = await guests.boot(self.host, driver, memory)
            self._templates[key] = await vm.template()
        return self._templates[key]

    async def touched(self, driver: str) -> ramet.VM:
        """A template of 512 MiB whose guest has written 64 MiB; in a quick run as it has booted."""
        if self.quick:
            return await self.template(driver)
        key = (driver, "512M, touched")
        if key not in self._templates:
            vm = await guests.boot(self.host, driver, "512M", touched_bytes=64 * MIB)
            self._templates[key] = await vm.template()
        return self._templates[key]

    async def tidy(self) -> None:
        """Remove what a benchmark has left: all but the shared templates."""
        kept = {vm.id for vm in self._templates.values()}
        for instance in await self.host.list(everything=True):
            if instance.id not in kept:
                await (await self.host.get(instance.id)).remove(force=True)
        for snapshot in await self.host.snapshots():
            await (await self.host.snapshot(snapshot.id)).remove()

    def floor(self, driver: str, template: ramet.VM) -> guests.Floor:
        """Forks of the same template without ramet."""
        if template.id not in self._floors:
            directory = self.scratch / "floors" / template.id
            self._floors[template.id] = guests.Floor(driver, template.directory, directory)
        return self._floors[template.id]


async def run_benchmarks(benchmarks: Sequence[Benchmark], *, quick: bool) -> list[Outcome]:
    """One after another. What fails is noted, and the next one begins."""
    outcomes = []
    async with scratch_home() as (host, scratch):
        run = Run(host, scratch, quick)
        ends = time.monotonic() + run.pick(FULL_S, QUICK_S)
        for index, benchmark in enumerate(benchmarks):
            # On a slow machine budgets shrink, so that the last ones have theirs.
            wanted_s = sum(later.whole_s for later in benchmarks[index:])
            share = max(0.0, min(1.0, (ends - time.monotonic()) / wanted_s))
            outcomes.append(await _outcome(run, benchmark, share * benchmark.budget_s))
    return outcomes


async def _outcome(run: Run, benchmark: Benchmark, budget_s: float) -> Outcome:
    run.ledger = Ledger()
    failed = False
    started = time.monotonic()
    for driver in benchmark.drivers or ("",):
        say(f"{benchmark.name} {driver}".rstrip())
        run.until = time.monotonic() + budget_s
        try:
            await benchmark.measure(run, driver)
        except Exception as error:
            failed = failed or not isinstance(error, UnavailableError | NotFoundError)
            run.ledger.skip(driver or benchmark.name, f"{type(error).__name__}: {error}")
            say(f"  {type(error).__name__}: {error}")
        await run.tidy()
    seconds = round(time.monotonic() - started, 1)
    say(f"  {seconds} s")
    ledger = run.ledger
    return Outcome(
        name=benchmark.name,
        seconds=seconds,
        figures=list(ledger.figures.values()),
        ratios=ledger.ratios,
        skipped=ledger.skipped,
        failed=failed,
    )


@asynccontextmanager
async def scratch_home() -> AsyncIterator[tuple[ramet.Host, Path]]:
    """An open Host, and a directory beside its home on the same filesystem. Neither they nor any process that
    works in them is left, whatever happened.
    """
    cache = config.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache) as directory:
        scratch = Path(directory)
        try:
            async with ramet.Host(scratch / "home") as host:
                yield host, scratch
        finally:
            with anyio.CancelScope(shield=True):
                await _end_all(scratch)


async def _end_all(scratch: Path) -> None:
    """Whatever VMM a failed benchmark may have left in one of the homes."""
    for home in list(scratch.iterdir()):
        for kind in ("instances", "staging", "pool"):
            for running in spawn.spawned_below(home / kind).values():
                for process in running:
                    with suppress(ramet.RametError):
                        await processes.kill(process)


def say(text: str) -> None:
    """To whoever waits."""
    print(text, file=sys.stderr, flush=True)
