"""Fork: N new instances whose memory and disks begin as a template's, a snapshot's, or a living instance's.

Each fork runs its own course and succeeds or fails alone (I7). A living source is captured first (a branch):
it is paused for a few milliseconds; the capture goes when the forks are there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio
import msgspec

from ramet import progress
from ramet.concurrency import best_effort
from ramet.drivers.interface import Driver
from ramet.engine.capture.capture import Captured
from ramet.engine.context import Context
from ramet.engine.fork.receipts import Forked, report
from ramet.engine.fork.records import require_sense, reserve
from ramet.engine.fork.starvation import Starvation
from ramet.engine.fork.tracing import trace
from ramet.engine.lifecycle.removal import destroy_all
from ramet.engine.lifecycle.state import state_of
from ramet.engine.maintenance.compaction import compact_capture
from ramet.engine.maintenance.decompression import raw_file_kept, unpacked
from ramet.engine.maintenance.requests import request_for_machine
from ramet.engine.manifest import read_manifest, require_restorable
from ramet.engine.origin import Origin, origin_of, require_parts
from ramet.engine.pool.claims import Claims, acquire
from ramet.engine.restore.connections import connections
from ramet.engine.restore.load import Living, load, resume_and_verify, take_in_thread
from ramet.engine.restore.parts import ForkOptions, Parts, is_quick
from ramet.engine.restore.timeline import Timeline
from ramet.engine.snapshots import catalog, create
from ramet.errors import FilesystemError, LimitReachedError, WrongStateError
from ramet.memory.delta import COMPACT_ABOVE_BYTES
from ramet.model.lifecycle import State, article, next_step
from ramet.model.record import Record
from ramet.model.schema import ForkReport
from ramet.model.snapshot import SnapshotRecord
from ramet.system import owners, process_limit, threads
from ramet.system.cgroups import usable_cpus
from ramet.system.files import remove_tree
from ramet.system.share import Shared


class ForkOutcome(NamedTuple):
    """The result of a `fork` call."""

    report: ForkReport
    errors: dict[str, Exception]
    """The error behind each failure in the report, by name."""
    records: dict[str, Record]
    """The records of the living forks, by id."""


async def fork(
    context: Context,
    source: Record,
    count: int,
    *,
    name: str | None,
    options: ForkOptions,
    detach: bool = False,
) -> ForkOutcome:
    """Fork an instance `count` times at once.

    A template and an instance in standby are forked directly; a running or paused instance is captured first,
    and then has its state from before. The forks belong to this process until they are detached; with
    `detach` only until all of them are recorded.

    Raises `UsageError`, `WrongStateError`, `NameTakenError`, `DamagedError`, `UnavailableError`,
    `FilesystemError`, `VmmError`: nothing was made then. An error of a single fork is in its place in the
    report. When the call is cancelled all its forks are removed.
    """
    called_at = time.perf_counter()
    require_sense(count, options)
    source = state_of(context, context.store.get(source.id)).record
    if source.state in {State.TEMPLATE, State.STANDBY}:
        return await _fork_from(
            context, origin_of(context, source), count, name, options, called_at, detach=detach
        )
    if source.state not in {State.RUNNING, State.PAUSED}:
        raise WrongStateError(
            f"{source.name} is {article(source.state)}: it can't be forked",
            hint=next_step(source.state, source.name),
        )
    made: list[Record] = []
    try:
        async with create.temporary_snapshot(context, source) as (taken, captured):
            origin = catalog.origin_of_snapshot(context, taken, captured.manifest)
            origin = await _merged(context, origin, count)
            outcome = await _fork_from(
                context, origin, count, name, options, called_at, captured, detach=detach
            )
            made += outcome.records.values()
    except BaseException:
        # Cancelled by asyncio itself, for example during the capture's removal: nobody gets the forks.
        await best_effort(destroy_all(context, made))
        raise
    return outcome


async def _merged(context: Context, origin: Origin, count: int) -> Origin:
    """Return a capture that nobody else has, its delta merged if that is less than `count` forks would hold.

    Merging writes base and delta once, and a fork writes the delta for itself.
    """
    memory = origin.manifest.memory
    if memory.delta is None or memory.delta_bytes <= COMPACT_ABOVE_BYTES:
        return origin
    base_bytes = origin.manifest.parts[memory.base].facts.allocated_bytes
    if count * memory.delta_bytes <= base_bytes + memory.delta_bytes:
        return origin
    with suppress(FilesystemError):  # no room: each fork has the delta for itself
        await compact_capture(origin.directory, context.driver(origin.manifest.driver), disks=False)
    return origin._replace(manifest=read_manifest(origin.directory))


async def fork_snapshot(
    context: Context,
    snapshot: SnapshotRecord,
    count: int,
    *,
    name: str | None,
    options: ForkOptions,
    detach: bool = False,
) -> ForkOutcome:
    """Fork a snapshot `count` times at once, whether or not its source still exists. Otherwise as `fork`."""
    called_at = time.perf_counter()
    require_sense(count, options)
    snapshot = catalog.require_published(context, snapshot.id)
    origin = catalog.origin_of_snapshot(context, snapshot)
    return await _fork_from(context, origin, count, name, options, called_at, detach=detach)


async def _fork_from(
    context: Context,
    origin: Origin,
    count: int,
    name: str | None,
    options: ForkOptions,
    called_at: float,
    captured: Captured | None = None,
    *,
    detach: bool,
) -> ForkOutcome:
    driver = context.driver(origin.manifest.driver)
    owners.owner(context.home.root)  # before a link is made on trial
    async with raw_file_kept(origin):
        origin, decompress_ms = await unpacked(context, origin)
        await require_parts(origin)
        await require_restorable(origin.manifest, driver, name=origin.name)
        is_temporary = captured is not None
        async with acquire(context, origin, driver, options, count, is_temporary=is_temporary) as claims:
            quick = claims.loaded < count and is_quick(origin, driver, context.home.instances, options, count)
            records = reserve(context, origin, name, count, claims.ids)
            # Nothing is awaited between the records and this: from here on each has all that is its own.
            claims.enter()
            limiter = anyio.CapacityLimiter(at_once())
            call = _Call(
                count=count,
                context=context,
                driver=driver,
                origin=origin,
                options=options,
                called_at=called_at,
                decompress_ms=decompress_ms,
                captured=captured,
                detach=detach,
                limiter=limiter,
                claims=claims,
                is_quick=quick,
            )
            return await _fork_all(call, records)


async def _fork_all(call: _Call, records: list[Record]) -> ForkOutcome:
    context, results = call.context, call.results
    proved: dict[str, Record] = {}
    _report(call)
    try:
        async with anyio.create_task_group() as watching:
            watching.start_soon(call.starvation.watch)
            async with anyio.create_task_group() as tasks:
                for record in records:
                    tasks.start_soon(_try_fork, call, record)
            await _fill_up(call, records)
            watching.cancel_scope.cancel()
        proved = _proved(results)  # one may fail yet, and then has a VMM that no row names
        made = report(context, call.origin.manifest, records, results, call.called_at, detach=call.detach)
        failed = [
            proved.get(record.id, record) for record in records if isinstance(results[record.id], Exception)
        ]
        await best_effort(destroy_all(context, failed))
        for result in results.values():
            if isinstance(result, Forked):
                request_for_machine(context.home, result.record.machine)
                break
    except BaseException:
        proved = _proved(results) | proved
        await best_effort(destroy_all(context, [proved.get(record.id, record) for record in records]))
        raise
    trace(call.origin, made, call.called_at, call.captured)
    errors = {record.name: error for record in records if isinstance(error := results[record.id], Exception)}
    return ForkOutcome(made, errors, _proved(results))


def _proved(results: dict[str, Forked | Exception]) -> dict[str, Record]:
    return {row_id: forked.record for row_id, forked in results.items() if isinstance(forked, Forked)}


def at_once() -> int:
    """Return how many forks of a call are made at the same time.

    Spawning and the guest's first steps take the host's CPU, and a part of the rest is waiting for the kernel
    (100 Firecrackers on 2 CPUs, in ms: 711 with 2 at once, 436 with 4, 400 with 6, 432 with 8, 401 with 12).
    """
    return 3 * usable_cpus()


@dataclass(frozen=True, kw_only=True)
class _Call:
    """The common facts of a call's forks."""

    count: int
    context: Context
    driver: Driver
    origin: Origin
    options: ForkOptions
    called_at: float
    decompress_ms: float
    captured: Captured | None
    detach: bool
    limiter: anyio.CapacityLimiter
    claims: Claims
    is_quick: bool
    results: dict[str, Forked | Exception] = field(default_factory=dict)
    starvation: Starvation = field(default_factory=Starvation)


def _report(call: _Call) -> None:
    if call.count > 1:
        progress.report("", len(call.results), call.count, unit="forks")


async def _try_fork(call: _Call, record: Record) -> None:
    try:
        async with call.limiter:
            with process_limit.named(), anyio.CancelScope() as scope:
                call.starvation.scopes[record.id] = scope
                call.results[record.id] = await _make_fork(call, record)
        if scope.cancelled_caught:
            call.results[record.id] = call.starvation.errors[record.id]
    except Exception as error:
        call.results[record.id] = error
    finally:
        call.starvation.scopes.pop(record.id, None)
        _report(call)


async def _fill_up(call: _Call, records: Sequence[Record]) -> None:
    """Retry forks that met a limit of the machine, one by one, up to the first that meets it alone.

    Other forks at the same time had a part in meeting the limit.
    """
    for record in records:
        if isinstance(call.results[record.id], LimitReachedError):
            await _clear(call, record)
            await _try_fork(call, record)
            if isinstance(call.results[record.id], LimitReachedError):
                return


async def _clear(call: _Call, record: Record) -> None:
    """Remove the leftovers of a failed attempt from a fork's directory. Its VMM is gone."""
    # What is left is deleted with the fork's record, or by the next ramet process: the attempt's error is
    # told.
    with suppress(FilesystemError):
        await threads.run(remove_tree, call.context.directory(record))


async def _make_fork(call: _Call, record: Record) -> Forked:
    timeline = Timeline(call.called_at)
    timeline.mark("queued")
    restored = await call.claims.restore(record, timeline, is_quick=call.is_quick)
    if restored is not None:
        parts, living, warm = restored
    else:
        parts, living = await _restore(call, record, timeline)
        warm = None
    # Written down when all are there. Until then its row says that it is being made, and by whom: recovery
    # finds its VMM by the directory that it belongs to.
    proved = msgspec.structs.replace(living.record, vmm=living.running)
    timings = timeline.timings(
        capture_ms=call.captured.capture_ms if call.captured is not None else 0.0,
        pause_ms=call.captured.pause_ms if call.captured is not None else 0.0,
        decompress_ms=call.decompress_ms,
    )
    if call.decompress_ms:
        parts = parts._replace(memory=_decompressed(parts.memory))
    return Forked(proved, parts, living.identity, timings, call.captured, warm)


async def _restore(call: _Call, record: Record, timeline: Timeline) -> tuple[Parts, Living]:
    """Resume a fork's guest in a VMM that is spawned for it."""
    directory = call.context.directory(record)
    parts = await take_in_thread(call.origin, call.driver, directory, call.options, is_quick=call.is_quick)
    timeline.mark("clone")
    async with connections() as opened:
        loaded = await load(call.driver, directory, parts, opened, resume=True, timeline=timeline)
        return parts, await resume_and_verify(
            call.context, record, directory, loaded, opened, timeline=timeline
        )


def _decompressed(memory: Shared) -> Shared:
    return msgspec.structs.replace(memory, reason=f"{memory.reason}; its source was decompressed first")
