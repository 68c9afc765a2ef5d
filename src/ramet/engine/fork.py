"""Fork: N new instances whose memory and disks begin as a template's, a snapshot's, or a living instance's.

Each fork runs its own course and succeeds or fails alone (I7). A living source is captured first (a branch):
it stands still for some milliseconds, and goes on; the capture goes when the forks are there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import NamedTuple
from uuid import uuid4

import anyio
import msgspec

from ramet.concurrency import best_effort
from ramet.drivers.api import Driver
from ramet.engine import hand_out, snapshots
from ramet.engine.bring_up import (
    ForkOptions,
    Origin,
    is_quick,
    load,
    origin_of,
    require_parts,
    take_parts,
    wake,
)
from ramet.engine.capture import Captured
from ramet.engine.connections import connections
from ramet.engine.context import Context
from ramet.engine.manifest import require_restorable
from ramet.engine.observe import observe
from ramet.engine.receipts import Forked, report
from ramet.engine.removal import discard_all
from ramet.engine.starvation import Starvation
from ramet.engine.tracing import trace
from ramet.engine.unpacking import kept, unpacked
from ramet.engine.worker import wake_for_machine
from ramet.errors import FilesystemError, LimitReachedError, NameTakenError, UsageError, WrongStateError
from ramet.host import owners, process_limit, threads
from ramet.host.cgroups import usable_cpus
from ramet.host.clock import now
from ramet.host.files import remove_tree
from ramet.host.share import Shared
from ramet.model.lifecycle import State, article, next_step
from ramet.model.names import fork_names, new_id
from ramet.model.record import Record
from ramet.model.shapes import ForkReport, Timings
from ramet.model.snapshot import SnapshotRecord

MOST_IN_A_CALL = 1000
_NAME_TRIES = 20


class ForkOutcome(NamedTuple):
    """One `fork` call's result."""

    report: ForkReport
    errors: dict[str, Exception]
    """The error behind each failure in the report, by name."""
    records: dict[str, Record]
    """Of the forks that live, by id."""


async def fork(
    context: Context, source: Record, count: int, *, name: str | None, options: ForkOptions
) -> ForkOutcome:
    """Fork an instance `count` times at once: a template, one in standby, or one that runs or is paused,
    which is captured first and then goes on. The forks belong to this process until they are detached.

    Raises `UsageError`, `WrongStateError`, `NameTakenError`, `DamagedError`, `UnavailableError`,
    `FilesystemError`, `VmmError`: nothing was made then. What befalls one fork alone is in its place in the
    report. When the call is cancelled all its forks are removed.
    """
    called_at = time.perf_counter()
    _require_sense(count, options)
    source = observe(context, context.store.get(source.id)).record
    if source.state in {State.TEMPLATE, State.STANDBY}:
        return await _fork_from(context, origin_of(context, source), count, name, options, called_at)
    if source.state not in {State.RUNNING, State.PAUSED}:
        raise WrongStateError(
            f"{source.name} is {article(source.state)}: it can't be forked",
            hint=next_step(source.state, source.name),
        )
    async with snapshots.passing(context, source) as (taken, captured):
        origin = snapshots.origin_of_snapshot(context, taken, captured.manifest)
        return await _fork_from(context, origin, count, name, options, called_at, captured)


async def fork_snapshot(
    context: Context, snapshot: SnapshotRecord, count: int, *, name: str | None, options: ForkOptions
) -> ForkOutcome:
    """Fork a snapshot `count` times at once, whatever has become of its source. As `fork`."""
    called_at = time.perf_counter()
    _require_sense(count, options)
    snapshot = snapshots.require_published(context, snapshot.id)
    origin = snapshots.origin_of_snapshot(context, snapshot)
    return await _fork_from(context, origin, count, name, options, called_at)


async def _fork_from(
    context: Context,
    origin: Origin,
    count: int,
    name: str | None,
    options: ForkOptions,
    called_at: float,
    captured: Captured | None = None,
) -> ForkOutcome:
    driver = context.driver(origin.manifest.driver)
    owners.owner(context.home.root)  # before a link is made on trial
    async with kept(origin):
        origin, decompress_ms = await unpacked(context, origin)
        await require_parts(origin)
        await require_restorable(origin.manifest, driver, name=origin.name)
        with context.keeper.out_of_the_way() if context.keeper is not None else nullcontext():
            claims, is_heard = await hand_out.claim(context, origin, driver, options, count)
            loaded = sum(one.warm.stage == "loaded" for one in claims)
            try:
                quick = loaded < count and is_quick(origin, driver, context.home.instances, options, count)
                records = _reserve(context, origin, name, count, [one.id for one in claims])
            except BaseException:
                await hand_out.put_back(context, claims)
                raise
            # Nothing is awaited between the records and this: from here on each has all that is its own.
            warm = hand_out.enter(context, claims)
            limiter = anyio.CapacityLimiter(at_once())
            call = _Call(
                context, driver, origin, options, called_at, decompress_ms, captured, limiter, warm, {}, quick
            )
            outcome = await _fork_all(call, records)
    if captured is None and options.share_memory:
        hand_out.tell(context, origin, count, is_heard=is_heard)
    return outcome


async def _fork_all(call: _Call, records: list[Record]) -> ForkOutcome:
    context, results = call.context, call.results
    proved: dict[str, Record] = {}
    try:
        async with anyio.create_task_group() as watching:
            watching.start_soon(call.starvation.watch)
            async with anyio.create_task_group() as tasks:
                for record in records:
                    tasks.start_soon(_attempt, call, record)
            await _fill_up(call, records)
            watching.cancel_scope.cancel()
        proved = _proved(results)  # one may fail yet, and then has a VMM that no row names
        made = report(context, call.origin.manifest, records, results, call.called_at)
        failed = [proved.get(one.id, one) for one in records if isinstance(results[one.id], Exception)]
        await best_effort(discard_all(context, failed))
        for result in results.values():
            if isinstance(result, Forked):
                wake_for_machine(context.home, result.record.machine)
                break
    except BaseException:
        proved = _proved(results) | proved
        await best_effort(discard_all(context, [proved.get(one.id, one) for one in records]))
        raise
    trace(call.origin, made, call.called_at, call.captured)
    errors = {one.name: error for one in records if isinstance(error := results[one.id], Exception)}
    return ForkOutcome(made, errors, _proved(results))


def _proved(results: dict[str, Forked | Exception]) -> dict[str, Record]:
    return {row_id: one.record for row_id, one in results.items() if isinstance(one, Forked)}


def at_once() -> int:
    """How many forks of a call are under way at once: spawning and the guest's first steps are the host's
    CPU's work, and a part of the rest is waiting for the kernel (100 Firecrackers on 2 CPUs, in ms: 711 with
    2 at once, 436 with 4, 400 with 6, 432 with 8, 401 with 12).
    """
    return 3 * usable_cpus()


@dataclass(frozen=True)
class _Call:
    """What all forks of one call have in common."""

    context: Context
    driver: Driver
    origin: Origin
    options: ForkOptions
    called_at: float
    decompress_ms: float
    captured: Captured | None
    limiter: anyio.CapacityLimiter
    warm: dict[str, hand_out.Claim]
    """What has been claimed for which of them, by id."""
    results: dict[str, Forked | Exception]
    quick: bool
    starvation: Starvation = field(default_factory=Starvation)


async def _attempt(call: _Call, record: Record) -> None:
    try:
        async with call.limiter:
            with process_limit.named(), anyio.CancelScope() as scope:
                call.starvation.scopes[record.id] = scope
                call.results[record.id] = await _one(call, record)
        if scope.cancelled_caught:
            call.results[record.id] = call.starvation.errors[record.id]
    except Exception as error:
        call.results[record.id] = error
    finally:
        call.starvation.scopes.pop(record.id, None)


async def _fill_up(call: _Call, records: Sequence[Record]) -> None:
    """Try again those that met a limit of the machine, which others under way had a part in: one by one, up
    to the first that meets it alone.
    """
    for record in records:
        if isinstance(call.results[record.id], LimitReachedError):
            await _clear(call, record)
            await _attempt(call, record)
            if isinstance(call.results[record.id], LimitReachedError):
                return


async def _clear(call: _Call, record: Record) -> None:
    """Remove what a failed attempt has left in a fork's directory. Its VMM is gone."""
    call.warm.pop(record.id, None)
    # What is left is swept with the fork's record, or by the next ramet process: the attempt's error is told.
    with suppress(FilesystemError):
        await threads.run(remove_tree, call.context.directory(record))


async def _one(call: _Call, record: Record) -> Forked:
    context = call.context
    marks = [call.called_at, time.perf_counter()]
    directory = context.directory(record)
    claimed, given = call.warm.get(record.id), None
    if claimed is not None:
        given = await hand_out.hand_out(
            context, call.origin, call.driver, call.options, record, claimed, marks, quick=call.quick
        )
    if given is None:
        claimed = None
        take = partial(take_parts, call.origin, call.driver, directory, call.options)
        # A thread would wait for its turn at the interpreter longer than some links take.
        parts = take() if call.quick else await threads.run(take)
        marks.append(time.perf_counter())
        async with connections() as opened:
            loaded = await load(call.driver, directory, parts, marks, opened, resume=True)
            given = parts, await wake(context, record, directory, loaded, marks, opened)
    parts, living = given
    # Written down when all are there. Until then its row says that it is being made, and by whom: a sweep
    # finds its VMM by the directory that it belongs to.
    proved = msgspec.structs.replace(living.record, vmm=living.running)
    stage = claimed.warm.stage if claimed is not None else None
    timings = _timings(marks, call.captured, call.decompress_ms)
    if call.decompress_ms:
        parts = parts._replace(memory=_decompressed(parts.memory))
    return Forked(proved, parts, living.identity, timings, call.captured, stage)


def _decompressed(memory: Shared) -> Shared:
    return msgspec.structs.replace(memory, reason=f"{memory.reason}; its source was decompressed first")


def _timings(marks: list[float], captured: Captured | None, decompress_ms: float) -> Timings:
    queued, clone, spawn, load, resume, ready = (
        round((after - before) * 1000, 3) for before, after in pairwise(marks)
    )
    capture_ms = captured.capture_ms if captured is not None else 0.0
    return Timings(
        queued=round(max(0.0, queued - capture_ms - decompress_ms), 3),
        decompress=decompress_ms,
        capture=capture_ms,
        pause=captured.pause_ms if captured is not None else 0.0,
        clone=clone,
        spawn=spawn,
        load=load,
        resume=resume,
        ready=ready,
        total=round((marks[-1] - marks[0]) * 1000, 3),
    )


def _reserve(
    context: Context, origin: Origin, name: str | None, count: int, ids: Sequence[str]
) -> list[Record]:
    """Records for `count` forks, in one transaction; the first ones have those `ids`.

    Invented names are invented again when another caller was quicker.
    """
    manifest = origin.manifest
    owner = owners.owner(context.home.root)
    for _ in range(_NAME_TRIES):
        names = fork_names(count, name=name, source=origin.name, taken=context.store.names())
        records = [
            Record(
                id=ids[number] if number < len(ids) else new_id(),
                name=fork_name,
                state=State.CREATED,
                driver=manifest.driver,
                image=manifest.image,
                machine=manifest.machine,
                kernel_version=manifest.kernel_version,
                parent=origin.parent,
                snapshot=origin.snapshot,
                generation=manifest.generation + 1,
                machine_id=uuid4().hex,
                created_at=now(),
                labels={},
                auto_remove=False,
                owner=owner,
            )
            for number, fork_name in enumerate(names)
        ]
        try:
            context.store.add(records)
        except NameTakenError:
            if name is not None:
                raise
            continue
        return records
    raise NameTakenError(f"no free names for forks of {origin.name}", hint="give them one with --name")


def _require_sense(count: int, options: ForkOptions) -> None:
    if not 1 <= count <= MOST_IN_A_CALL:
        raise UsageError(
            f"{count} forks can't be made in one call",
            hint=f"ask for 1 to {MOST_IN_A_CALL}: each is a process and about ten open files of this machine",
        )
    if options.require_shared and not options.share_memory:
        raise UsageError("sharing can't be both required and forbidden", hint="use one of the two")
