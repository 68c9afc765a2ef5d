"""The controller of a pool: a task of a Host that has warm VMMs made, sized by demand, within a budget.

It makes one VMM at a time, and none while its Host forks. It never decides which process gets a VMM: the
process that renames a warm VMM's directory has it, and the controller sees that it is gone and makes another.
It is the parent of all VMMs that it has made, so it waits for their ends, wherever they are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

import anyio

from ramet.drivers.interface import Ability, Driver, StartsEmpty
from ramet.engine.context import Context
from ramet.engine.pool import directory as pool_directory
from ramet.engine.pool import prewarm
from ramet.engine.pool.demand import HALF_LIFE_S, Demand
from ramet.engine.pool.inventory import EMPTY, Inventory
from ramet.engine.pool.prewarm import Made
from ramet.engine.pool.report import ControllerFile
from ramet.engine.pool.sources import Sources
from ramet.errors import RametError
from ramet.memory.accounting import available_bytes, smaps_rollup, total_bytes
from ramet.system import process_ref, processes
from ramet.system.cgroups import processes_left
from ramet.system.files import filesystem_errors
from ramet.system.kvm import kvm_verdict
from ramet.system.listening import names_watched
from ramet.system.publishing import spread
from ramet.text import encode_json
from ramet.units import MIB, format_bytes

MOST_WARM: Final = 1000
_log: Final = logging.getLogger("ramet.pool")
_QUIET_S: Final = 0.05
"""Time after a claim in which the pool makes nothing: the fork's guest needs the CPU for its first steps."""
_LONGEST_QUIET_S: Final = 1.0
"""Longest delay of a missing VMM while others fork."""
_SPARE_DIVISOR: Final = 10
"""A tenth of the machine's memory stays free."""
_SPARE_PROCESSES: Final = 32
"""Processes and threads that a cgroup has to have left: forks, commands and ramet itself need some."""
_FIRST_GUESS_BYTES: Final = 64 * MIB
_MEMORY_AGAIN_S: Final = 5.0
_WITHOUT_INOTIFY_S: Final = 1.0
_IDLE_HALF_LIVES: Final = 4
_TRIES: Final = 5
_LEFT_IDLE: Final = 1
"""Empty VMMs that stay when nobody forks."""


class Controller:
    """A controller that keeps at most `budget` warm VMMs while it is open.

    `spare_bytes` of memory are left free (a tenth of the machine's); demand halves every `half_life_s`.
    """

    def __init__(
        self,
        context: Context,
        budget: int,
        *,
        half_life_s: float = HALF_LIFE_S,
        spare_bytes: int | None = None,
    ) -> None:
        self._context = context
        self._budget = budget
        self._spare_bytes = total_bytes() // _SPARE_DIVISOR if spare_bytes is None else spare_bytes
        self._demand = Demand(half_life_s)
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._file = context.home.pool / pool_directory.controller_name(context.home)
        self._written: ControllerFile | None = None
        self._inventory = Inventory()
        self._sources = Sources(context, self._demand, self._news)
        self._costs: dict[str, int] = {}
        self._forking = 0
        self._quiet_until_s = 0.0
        self._missing_since_s: float | None = None
        self._asked_at_s = time.monotonic()
        self._starts_empty: list[Driver] = []
        self._empty: Driver | None = None
        self._sees_names = True

    def start(self) -> None:
        """Begin, in the background. Raises `FilesystemError` when the pool's directory can't be made."""
        place = self._context.home.pool
        with filesystem_errors("keep warm VMMs in", place):
            for tries_left in reversed(range(_TRIES)):
                place.mkdir(mode=0o700, exist_ok=True)
                spread(place)
                try:
                    self._file.touch(mode=0o600)
                    break
                except FileNotFoundError:  # who has just left has taken the empty directory along
                    if tries_left == 0:
                        raise
        self._report(None)
        self._context.controller = self
        self._context.tasks.start_soon(self._run)

    async def close(self) -> None:
        """End every warm VMM that no fork has taken. Only VMMs that can't be ended are left."""
        self._context.controller = None
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
            with suppress(OSError):
                self._file.unlink()  # first: from here on no process puts one back
            self._inventory.count(pool_directory.names(self._context.home))
            for made in self._inventory.waiting():
                # What stays is deleted by the next ramet process, once this one is gone.
                with suppress(RametError, OSError):
                    await self._end(made)
            names = pool_directory.names(self._context.home)
            if not pool_directory.is_kept(names):
                for wish in pool_directory.wanted(names):
                    with suppress(OSError):  # a wish too many is read by the next controller, and fades
                        (self._context.home.pool / wish.name).unlink()
            pool_directory.leave(self._context.home)

    def report_demand(self, source: str, count: int) -> None:
        """Note a demand (`ControlsPool.report_demand`)."""
        self._asked_at_s = time.monotonic()
        self._demand.add(source, count, self._asked_at_s)
        self._notify()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Make no VMMs during the block, and a moment longer (`ControlsPool.quiet`)."""
        self._forking += 1
        try:
            yield
        finally:
            self._forking -= 1
            self._stay_quiet()
            self._notify()

    async def until_idle(self) -> None:
        """Wait until there is nothing to make, or nothing that can be made."""
        await self._idle.wait()

    def _notify(self) -> None:
        self._idle.clear()
        self._news.set()

    def _stay_quiet(self) -> None:
        self._quiet_until_s = time.monotonic() + _QUIET_S

    async def _run(self) -> None:
        try:
            with self._scope, ExitStack() as watching:
                self._sees_names = watching.enter_context(names_watched(self._context.home.pool, self._news))
                await self._find_empty()
                await self._keep()
        except Exception as error:
            # Forks do without; that isn't its Host's trouble.
            self._report(f"the pool controller has failed: {type(error).__name__}: {error}")
            self._idle.set()
        finally:
            self._sources.close()
            self._ended.set()

    async def _find_empty(self) -> None:
        """Find the drivers that run guests here and whose VMMs can be started empty."""
        if self._context.accelerator == "tcg":
            return
        verdict = await kvm_verdict(self._context.cache)
        if verdict.status not in ("runs_linux", "bare_metal_only"):
            return
        for driver in self._context.drivers.values():
            if not isinstance(driver, StartsEmpty):
                continue
            with suppress(RametError):  # not installed: none of its VMMs is kept empty
                await driver.version()
                if driver.standing().why_unusable is not None:
                    continue
                if verdict.status == "runs_linux" or Ability.BOOTS_BARE_METAL in driver.abilities:
                    self._starts_empty.append(driver)

    async def _keep(self) -> None:
        while True:
            self._news.clear()
            await self._look()
            shares = self._shares()
            surplus = list(self._inventory.surplus(shares, self._sources.keys()))
            for made in surplus:
                with suppress(RametError, OSError):  # it is surplus the next time, too
                    await self._end(made)
            if surplus:
                shares = self._shares()  # empty VMMs of another driver may come now
            missing, held_back = self._missing(shares)
            self._report(held_back)
            if missing is None:
                self._missing_since_s = None
                if not self._news.is_set():
                    self._idle.set()
                pause_s = self._nothing_for_s(memory=held_back is not None)
            else:
                pause_s = self._quiet_s()
                if not self._forking and pause_s <= 0.0:
                    await self._make(missing)
                    continue
            with anyio.move_on_after(None if self._forking else pause_s):
                await self._news.wait()

    def _quiet_s(self) -> float:
        """Return the seconds for which the forks that were just made are still to be left alone."""
        now_s = time.monotonic()
        if self._missing_since_s is None:
            self._missing_since_s = now_s
        return min(self._quiet_until_s, self._missing_since_s + _LONGEST_QUIET_S) - now_s

    async def _look(self) -> None:
        """Read what other processes have claimed and reported, and look at the sources."""
        names = pool_directory.names(self._context.home)
        if self._inventory.count(names):
            self._stay_quiet()
        for wish in pool_directory.wanted(names):
            try:
                (self._context.home.pool / wish.name).unlink()
            except OSError:
                continue  # another controller has read it
            self.report_demand(wish.source, wish.forks)
        await self._sources.look(
            self._demand.wishes(time.monotonic()).keys() | self._inventory.have().keys() - {EMPTY}
        )

    def _shares(self) -> dict[str, int]:
        """Return the wanted number of VMMs per source, and of empty VMMs."""
        now_s = time.monotonic()
        shares = self._demand.shares(self._budget, now_s)
        left = self._budget - sum(shares.values())
        if self._starts_empty and left:
            of_use = self._choose_empty(shares)
            is_idle = now_s - self._asked_at_s >= _IDLE_HALF_LIVES * self._demand.half_life_s
            shares[EMPTY] = min(left, _LEFT_IDLE if is_idle else left) if of_use else 0
        return shares

    def _choose_empty(self, shares: Mapping[str, int]) -> bool:
        """Choose the driver of the empty VMMs, and tell whether they are of use.

        It is the first whose guests are in demand, or the first of all without any demand. The empty VMMs of
        another driver are ended before one of this driver is made.
        """
        in_demand = {self._sources.driver_of(source) for source in shares}
        chosen = next(
            (driver for driver in self._starts_empty if not shares or driver.name in in_demand), None
        )
        if not self._inventory.have().get(EMPTY):
            self._empty = chosen
        return chosen is not None and chosen is self._empty

    def _missing(self, shares: dict[str, int]) -> tuple[str | None, str | None]:
        """Return the source of the next VMM to make, and why no others are made."""
        now_s = time.monotonic()
        held_back: str | None = None
        have = dict.fromkeys(shares, 0) | self._inventory.have()
        # The source with the least of its share comes first, loaded VMMs before empty ones.
        for source in sorted(shares, key=lambda name: (name == EMPTY, have[name] / (shares[name] or 1))):
            if have[source] >= shares[source]:
                continue
            why = self._sources.why_put_off(source, now_s)
            if why is not None:
                held_back = why
                continue
            free_bytes = available_bytes()
            if free_bytes - self._costs.get(source, _FIRST_GUESS_BYTES) < self._spare_bytes:
                return None, (
                    f"only {format_bytes(free_bytes)} of memory is available,"
                    f" and {format_bytes(self._spare_bytes)} is to stay free"
                )
            room = processes_left()
            if room is not None and room.left < _SPARE_PROCESSES:
                return None, f"the cgroup {room.limited_by} takes only {room.left} more processes and threads"
            return source, held_back
        return None, held_back

    def _nothing_for_s(self, *, memory: bool) -> float | None:
        """Return the seconds for which nothing changes by itself; None: for ever."""
        now_s = time.monotonic()
        moments = self._sources.waits_s(now_s)
        if (soonest_s := self._demand.changes_in_s(now_s)) is not None:
            moments.append(soonest_s)
        idle_s = self._asked_at_s + _IDLE_HALF_LIVES * self._demand.half_life_s - now_s
        if idle_s > 0.0:
            moments.append(idle_s)
        if memory:
            moments.append(_MEMORY_AGAIN_S)
        if not (self._sees_names and self._sources.sees_changes):
            moments.append(_WITHOUT_INOTIFY_S)
        return min(moments) + 0.001 if moments else None

    async def _make(self, source: str) -> None:
        try:
            if source == EMPTY:
                assert self._empty is not None
                made = await prewarm.make_empty(self._context, self._empty)
            else:
                made = await prewarm.make_loaded(self._context, source)
        except (RametError, OSError) as error:
            self._sources.put_off(source, error)
            return
        self._inventory.add(made)
        self._sources.succeeded(source)
        self._context.tasks.start_soon(self._until_its_end, made)
        if source not in self._costs:
            with suppress(RametError):  # it has ended, or can't be looked into: a guess stands for its cost
                self._costs[source] = smaps_rollup(made.process.pid).pss_bytes

    async def _until_its_end(self, made: Made) -> None:
        """Collect the end of a VMM, which is this process's child even if another process has it."""
        await processes.wait_ended(made.process)
        if self._inventory.has_ended(made):
            self._news.set()

    async def _end(self, made: Made) -> None:
        self._inventory.remove(made)
        home = self._context.home
        name = pool_directory.ready(made.id, made.key)
        entry = pool_directory.Entry("ready", made.id, process_ref.this_process(), made.key, name)
        if (taken := pool_directory.take(home, entry)) is not None:
            with anyio.CancelScope(shield=True):
                await pool_directory.end(home, taken, [made.process])

    def _report(self, held_back: str | None) -> None:
        written = ControllerFile(warm=self._budget, held_back=held_back)
        if written != self._written:
            if held_back is not None:
                _log.info("fewer VMMs are warm than would be good: %s", held_back)
            self._written = written
            with suppress(OSError):  # what `pool` shows is older then
                self._file.write_bytes(encode_json(written))
