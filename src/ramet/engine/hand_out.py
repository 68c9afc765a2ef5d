"""Warm VMMs handed out to forks.

What is warm is an advantage and never a condition: a VMM that has died, hangs, or isn't what it should be is
ended, and the fork is made in the ordinary way.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from ramet.drivers.api import Driver, StartsEmpty
from ramet.engine import pool
from ramet.engine.bring_up import (
    ForkOptions,
    Living,
    Loaded,
    Origin,
    Parts,
    settle_in,
    take_parts,
    wake,
)
from ramet.engine.connections import connections
from ramet.engine.context import Context
from ramet.engine.manifest import check_part
from ramet.errors import DamagedError, GuestError, RametError
from ramet.host import processes, threads
from ramet.host.files import remove_tree
from ramet.model.record import Record
from ramet.paths import MEM_FILE, WARM_FILE

RESUME_LIMIT_S = 5.0
_log: Final = logging.getLogger("ramet.pool")


class Claim(NamedTuple):
    """A warm VMM that this process has taken for a fork, whose id is to be the instance's."""

    id: str
    warm: pool.Warm
    taken: pool.Entry
    before: pool.Entry


class Claims(NamedTuple):
    """What one call has taken, and whether there is another process to tell what it forked."""

    claims: list[Claim]
    is_heard: bool


async def claim(context: Context, origin: Origin, driver: Driver, options: ForkOptions, count: int) -> Claims:
    """Take at most `count` warm VMMs that fit: loaded ones first. Whoever else wants one gets another one.

    Where nobody keeps a pool that is one system call.
    """
    found = pool.names(context.home)
    if not found:
        return Claims([], False)
    version = await driver.version()
    keys = []
    if options.share_memory:
        memory = pool.mem_inode(origin.directory, origin.manifest.memory.base)
        keys.append(pool.key_of(origin.directory, origin.manifest, version, memory))
    if isinstance(driver, StartsEmpty):
        keys.append(pool.key_of_empty(driver.name, version))
    # One of another namespace is for the forks that are made there.
    there = [
        entry for entry in pool.entries(found) if entry.state == "ready" and processes.is_here(entry.holder)
    ]
    claims: list[Claim] = []
    for key in keys:
        for entry in there:
            if len(claims) < count and entry.key == key:
                claims += await _claim(context, entry, options)
    return Claims(claims, pool.is_heard(found))


async def _claim(context: Context, entry: pool.Entry, options: ForkOptions) -> list[Claim]:
    taken = pool.take(context.home, entry)
    if taken is None:
        return []
    warm = pool.read_warm(context.home.pool / taken.name)
    if warm is None or processes.is_dead(warm.process):
        known = [warm.process] if warm is not None else processes.spawned_in(context.home.pool / taken.name)
        # A directory of the pool that stays behind is swept when this process is gone.
        with anyio.CancelScope(shield=True), suppress(RametError, OSError):
            await pool.end(context.home, taken, known)
        return []
    modes = [one.mode for one in warm.disks] + ([warm.memory.mode] if warm.memory is not None else [])
    if options.require_shared and any(mode != "shared" for mode in modes):
        await _put_back(context, taken, entry, warm)
        return []
    return [Claim(entry.id, warm, taken, entry)]


async def put_back(context: Context, claims: Sequence[Claim]) -> None:
    """They are for others again: the forks that they were for aren't made."""
    for one in claims:
        await _put_back(context, one.taken, one.before, one.warm)


async def _put_back(context: Context, taken: pool.Entry, before: pool.Entry, warm: pool.Warm) -> None:
    """Left where it was, unless its keeper isn't there any more, who would end it; he may be about to go."""
    if pool.is_keeper(context.home, before.holder):
        pool.put_back(context.home, taken, before)
        if pool.is_keeper(context.home, before.holder):
            return
        again = pool.take(context.home, before)
        if again is None:
            return
        taken = again
    # As above: nobody's guest is in it.
    with anyio.CancelScope(shield=True), suppress(RametError, OSError):
        await pool.end(context.home, taken, [warm.process])


def enter(context: Context, claims: Sequence[Claim]) -> dict[str, Claim]:
    """Each directory becomes its instance's, of which there is a record by now. By id.

    One that can't (where `instances` is a mount of its own, say) is ended beside, and its fork made in the
    ordinary way.
    """
    entered = {}
    for one in claims:
        try:
            (context.home.pool / one.taken.name).rename(context.home.instance(one.id))
        except OSError as error:
            _log.info("a warm VMM can't be handed out: %s", error)
            context.tasks.start_soon(_let_go, context, one)
        else:
            entered[one.id] = one
    return entered


async def _let_go(context: Context, claim: Claim) -> None:
    # As above: nobody's guest is in it.
    with anyio.CancelScope(shield=True), suppress(RametError, OSError):
        await pool.end(context.home, claim.taken, [claim.warm.process])


async def hand_out(
    context: Context,
    origin: Origin,
    driver: Driver,
    options: ForkOptions,
    record: Record,
    claim: Claim,
    marks: list[float],
    *,
    quick: bool,
) -> tuple[Parts, Living] | None:
    """The guest of a fork, brought up in the VMM that was claimed for it. None: that one was no good.

    It is gone then, with its directory. `marks` gets what it gets in the ordinary way. Raises `GuestError` as
    `wake`; no VMM is left then.
    """
    directory = context.directory(record)
    called_at = marks[0]
    try:
        async with connections() as opened:
            if claim.warm.stage == "empty":
                put = partial(take_parts, origin, driver, directory, options, into=True)
                parts = put() if quick else await threads.run(put)
                loaded = await settle_in(driver, directory, claim.warm.process, parts, marks, opened)
            else:
                parts, loaded = _loaded(origin, driver, directory, claim, marks)
            living = await wake(
                context, record, directory, loaded, marks, opened, resume_limit_s=RESUME_LIMIT_S
            )
        (directory / WARM_FILE).unlink(missing_ok=True)
        return parts, living
    except GuestError:
        raise
    except (RametError, OSError) as error:
        _log.info("%s: its warm VMM was no good: %s", record.name, error)
        with anyio.CancelScope(shield=True):
            await processes.kill(claim.warm.process)
            await threads.run(remove_tree, directory)
        marks[:] = called_at, time.perf_counter()  # as if it had had to wait for its turn so long
        return None


def _loaded(
    origin: Origin, driver: Driver, directory: Path, claim: Claim, marks: list[float]
) -> tuple[Parts, Loaded]:
    """Its parts were held against the manifest when they were linked. They are once more, where that tells
    anything: what was copied is the VMM's own.
    """
    warm, manifest = claim.warm, origin.manifest
    if warm.machine is None or warm.running is None or warm.memory is None:
        raise DamagedError(f"{directory / WARM_FILE} doesn't say what is loaded")
    if warm.memory.mode == "shared":
        check_part(manifest, directory, manifest.memory.base, name=MEM_FILE, capture=origin.directory)
    parts = Parts(manifest, warm.memory, warm.disks, None)
    vmm = driver.attach(directory, warm.process, warm.machine, just_loaded=True)
    marks += [time.perf_counter()] * 3
    return parts, Loaded(warm.machine, vmm, warm.running, goes_on=False)


def tell(context: Context, origin: Origin, count: int, *, is_heard: bool) -> None:
    """Let whoever keeps the pool know that so many were forked of that capture, if it is one that stays."""
    if context.keeper is None and not is_heard:
        return
    source = os.fspath(origin.directory.relative_to(context.home.root))
    if context.keeper is not None:
        context.keeper.asked(source, count)
    else:
        pool.tell(context.home, source, count)


def expect(context: Context, directory: Path) -> None:
    """A capture has been made in this Host: the first fork of it is to find a warm VMM, too."""
    if context.keeper is not None:
        context.keeper.asked(os.fspath(directory.relative_to(context.home.root)), 1)
