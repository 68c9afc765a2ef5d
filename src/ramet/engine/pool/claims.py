"""Claims on warm VMMs: taken from the pool for one call of `fork`, and put back when that call fails.

A warm VMM is an advantage and never a condition: a VMM that has died, hangs, or is wrong in any way is ended,
and its fork is made in the ordinary way.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from ramet.drivers.interface import Driver, StartsEmpty
from ramet.engine.context import Context
from ramet.engine.manifest import check_part
from ramet.engine.origin import Origin
from ramet.engine.pool import directory as pool_directory
from ramet.engine.restore.connections import connections
from ramet.engine.restore.load import Living, Loaded, attach_guest, resume_and_verify, take_in_thread
from ramet.engine.restore.parts import ForkOptions, Parts
from ramet.engine.restore.timeline import Timeline
from ramet.errors import DamagedError, GuestError, RametError
from ramet.model.record import Record
from ramet.model.schema import WarmState
from ramet.paths import MEM_FILE, WARM_FILE
from ramet.system import liveness, process_ref, processes, spawn, threads
from ramet.system.files import remove_tree

RESUME_LIMIT_S = 5.0
_log: Final = logging.getLogger("ramet.pool")


class Claim(NamedTuple):
    """A warm VMM that this process has taken for a fork, whose id is to be the instance's."""

    id: str
    warm: pool_directory.Warm
    taken: pool_directory.Entry
    before: pool_directory.Entry


class Restored(NamedTuple):
    """A fork's guest, living in the VMM that was claimed for it."""

    parts: Parts
    living: Living
    warm: WarmState


@asynccontextmanager
async def acquire(
    context: Context,
    origin: Origin,
    driver: Driver,
    options: ForkOptions,
    count: int,
    *,
    is_temporary: bool = False,
) -> AsyncIterator[Claims]:
    """Claim at most `count` warm VMMs that fit, for the forks that are made inside: loaded ones first.

    Other callers get other VMMs. Inside, the pool's controller makes nothing. A block that fails puts back
    the VMMs that it hasn't entered. A block that succeeds reports the demand, unless the capture
    `is_temporary`: nobody forks that again. Without a pool all this is one system call.
    """
    controller = context.controller
    with controller.quiet() if controller is not None else nullcontext():
        names = pool_directory.names(context.home)
        claims = Claims(context, origin, driver, options)
        try:
            if names:
                await claims.take(names, count)
            yield claims
        except BaseException:
            await claims.put_back()
            raise
    if options.share_memory and not is_temporary:
        _report_demand(context, origin, names, count)


def _report_demand(context: Context, origin: Origin, names: Sequence[str], count: int) -> None:
    source = os.fspath(origin.directory.relative_to(context.home.root))
    if context.controller is not None:
        context.controller.report_demand(source, count)
    else:
        pool_directory.report_demand(context.home, names, source, count)


def expect(context: Context, directory: Path) -> None:
    """Ask for a warm VMM of a capture that this Host has just made: its first fork is to find one, too."""
    if context.controller is not None:
        context.controller.report_demand(os.fspath(directory.relative_to(context.home.root)), 1)


class Claims:
    """The warm VMMs that one call has claimed. Made by `acquire`."""

    def __init__(self, context: Context, origin: Origin, driver: Driver, options: ForkOptions) -> None:
        self._context = context
        self._origin = origin
        self._driver = driver
        self._options = options
        self._taken: list[Claim] = []
        self._entered: dict[str, Claim] = {}

    @property
    def ids(self) -> list[str]:
        """The ids that the first forks are to have: each is its warm VMM's."""
        return [claim.id for claim in self._taken]

    @property
    def loaded(self) -> int:
        """Number of claimed VMMs that have the guest's memory already."""
        return sum(claim.warm.state == "loaded" for claim in self._taken)

    async def take(self, names: Sequence[str], count: int) -> None:
        """Claim up to `count` of the warm VMMs among `names`, those in the pool's directory."""
        origin, driver = self._origin, self._driver
        version = await driver.version()
        keys = []
        if self._options.share_memory:
            memory = pool_directory.mem_inode(origin.directory, origin.manifest.memory.base)
            keys.append(pool_directory.key_of(origin.directory, origin.manifest, version, memory))
        if isinstance(driver, StartsEmpty):
            keys.append(pool_directory.key_of_empty(driver.name, version))
        # A warm VMM of another namespace is for the forks that are made there.
        there = [
            entry
            for entry in pool_directory.entries(names)
            if entry.state == "ready" and process_ref.is_here(entry.holder)
        ]
        for key in keys:
            for entry in there:
                if len(self._taken) < count and entry.key == key:
                    self._taken += await _claim(self._context, entry, self._options)

    async def put_back(self) -> None:
        """Give the claims that weren't entered back to others: their forks aren't made."""
        while self._taken:
            claim = self._taken.pop()
            await _put_back(self._context, claim.taken, claim.before, claim.warm)

    def enter(self) -> None:
        """Make each claimed directory its instance's, whose record exists by now.

        If that can't be done (`instances` is a separate mount, for example) the VMM is ended in the
        background, and its fork is made in the ordinary way.
        """
        context = self._context
        while self._taken:
            claim = self._taken.pop()
            try:
                (context.home.pool / claim.taken.name).rename(context.home.instance(claim.id))
            except OSError as error:
                _log.info("a warm VMM can't be claimed: %s", error)
                context.tasks.start_soon(_end, context, claim)
            else:
                self._entered[claim.id] = claim

    async def restore(self, record: Record, timeline: Timeline, *, is_quick: bool) -> Restored | None:
        """Resume a fork's guest in the VMM that was claimed for it; None without a usable VMM.

        An unusable VMM is removed with its directory; `timeline` is as after `restart` then. Raises
        `GuestError` as `resume_and_verify`; no VMM is left then.
        """
        claim = self._entered.pop(record.id, None)
        if claim is None:
            return None
        directory = self._context.directory(record)
        try:
            async with connections() as opened:
                if claim.warm.state == "empty":
                    parts = await take_in_thread(
                        self._origin, self._driver, directory, self._options, is_quick=is_quick, into=True
                    )
                    timeline.mark("clone")
                    loaded = await attach_guest(
                        self._driver, directory, claim.warm.process, parts, opened, timeline=timeline
                    )
                else:
                    parts, loaded = _loaded(self._origin, self._driver, directory, claim)
                    timeline.mark("clone")
                    timeline.skip("spawn", "load")
                living = await resume_and_verify(
                    self._context,
                    record,
                    directory,
                    loaded,
                    opened,
                    resume_limit_s=RESUME_LIMIT_S,
                    timeline=timeline,
                )
            (directory / WARM_FILE).unlink(missing_ok=True)
            return Restored(parts, living, claim.warm.state)
        except GuestError:
            raise
        except (RametError, OSError) as error:
            _log.info("%s: its warm VMM was no good: %s", record.name, error)
            with anyio.CancelScope(shield=True):
                await processes.kill(claim.warm.process)
                await threads.run(remove_tree, directory)
            timeline.restart()
            return None


async def _claim(context: Context, entry: pool_directory.Entry, options: ForkOptions) -> list[Claim]:
    taken = pool_directory.take(context.home, entry)
    if taken is None:
        return []
    warm = pool_directory.read_warm(context.home.pool / taken.name)
    if warm is None or liveness.is_dead(warm.process):
        known = [warm.process] if warm is not None else spawn.spawned_in(context.home.pool / taken.name)
        # A directory of the pool that stays behind is deleted when this process is gone.
        with anyio.CancelScope(shield=True), suppress(RametError, OSError):
            await pool_directory.end(context.home, taken, known)
        return []
    modes = [disk.mode for disk in warm.disks] + [base.mode for base in warm.bases]
    if warm.memory is not None:
        modes.append(warm.memory.mode)
    if options.require_shared and any(mode != "shared" for mode in modes):
        await _put_back(context, taken, entry, warm)
        return []
    return [Claim(entry.id, warm, taken, entry)]


async def _put_back(
    context: Context, taken: pool_directory.Entry, before: pool_directory.Entry, warm: pool_directory.Warm
) -> None:
    """Put the VMM back. End it if its controller, which would end it, has gone meanwhile."""
    if pool_directory.is_controller(context.home, before.holder):
        pool_directory.put_back(context.home, taken, before)
        if pool_directory.is_controller(context.home, before.holder):
            return
        again = pool_directory.take(context.home, before)
        if again is None:
            return
        taken = again
    # As above: it has no guest.
    with anyio.CancelScope(shield=True), suppress(RametError, OSError):
        await pool_directory.end(context.home, taken, [warm.process])


async def _end(context: Context, claim: Claim) -> None:
    # As above: it has no guest.
    with anyio.CancelScope(shield=True), suppress(RametError, OSError):
        await pool_directory.end(context.home, claim.taken, [claim.warm.process])


def _loaded(origin: Origin, driver: Driver, directory: Path, claim: Claim) -> tuple[Parts, Loaded]:
    """Return the parts and the VMM of a warm VMM that is loaded.

    Its parts were checked against the manifest when they were linked. The memory is checked once more if it
    is shared: copied memory is the VMM's own.
    """
    warm, manifest = claim.warm, origin.manifest
    if warm.machine is None or warm.running is None or warm.memory is None:
        raise DamagedError(f"{directory / WARM_FILE} doesn't say what is loaded")
    if warm.memory.mode == "shared":
        check_part(manifest, directory, manifest.memory.base, name=MEM_FILE, capture=origin.directory)
    parts = Parts(manifest, warm.memory, warm.disks, None, warm.bases)
    vmm = driver.attach(directory, warm.process, warm.machine, just_loaded=True)
    return parts, Loaded(warm.machine, vmm, warm.running, is_resumed=False)
