"""Fork: N new instances whose memory and disks begin as a template's.

Each fork runs its own course and succeeds or fails alone (I7). The course of one: a directory of its own,
into which the mem-file is linked; the parts held against the manifest; a VMM on them; vmstate; resume; proof.
Guest RAM is neither read nor written on the host.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec

from ramet.disk.clone import clone_directory
from ramet.disk.volumes import ForkedDisk, files_of, fork_disk
from ramet.drivers.api import Ability, Driver
from ramet.engine.boot import now, running_vmm
from ramet.engine.context import Context
from ramet.engine.manifest import Manifest, check_part, read_manifest, require_restorable
from ramet.engine.observe import observe
from ramet.engine.proof import prove
from ramet.engine.receipts import Forked, report
from ramet.engine.removal import discard_all
from ramet.errors import (
    DamagedError,
    FilesystemError,
    NameTakenError,
    NotSharedError,
    RametError,
    UsageError,
    WrongStateError,
)
from ramet.host import processes
from ramet.host.share import Shared, share_file
from ramet.model.lifecycle import Move, State, next_step
from ramet.model.names import fork_names, new_id
from ramet.model.record import Record
from ramet.model.shapes import (
    ForkReport,
    Timings,
)
from ramet.paths import CONFIG_FILE, MANIFEST_FILE, MEM_FILE, VMSTATE_FILE

READY_LIMIT_S = 60.0
MOST_AT_ONCE = 1000
_NAME_TRIES = 20
_SOURCES_OWN = (MANIFEST_FILE, CONFIG_FILE)
"""What a source's directory has that is of no meaning to its forks."""


class ForkOptions(NamedTuple):
    """How memory may be had: `require_shared` makes anything but sharing an error, `share_memory=False`
    copies on purpose.
    """

    require_shared: bool = False
    share_memory: bool = True


class ForkOutcome(NamedTuple):
    """One `fork` call's result: the report, and the error behind each failure in it, by name."""

    report: ForkReport
    errors: dict[str, Exception]


async def fork(
    context: Context, source: Record, count: int, *, name: str | None, options: ForkOptions
) -> ForkOutcome:
    """Fork a template `count` times at once. The forks belong to this process until they are detached.

    Raises `UsageError`, `WrongStateError` (a running instance has to be made a template first),
    `NameTakenError`, `DamagedError`, `UnavailableError`: nothing was made then. What befalls one fork alone
    is in its place in the report. When the call is cancelled all its forks are removed.
    """
    called_at = time.perf_counter()
    _require_count(count)
    if options.require_shared and not options.share_memory:
        raise UsageError("sharing can't be both required and forbidden", hint="use one of the two")
    source = context.store.get(source.id)
    _require_template(observe(context, source).record)
    driver = context.driver(source.driver)
    template = context.directory(source)
    try:
        manifest = read_manifest(template)
        for part in manifest.parts:
            check_part(manifest, template, part)
    except DamagedError:
        context.store.get(source.id)  # nothing is damaged when it has just been removed: that is said instead
        raise
    await require_restorable(manifest, driver, name=source.name)
    records = _reserve(context, source, manifest, name, count)
    results: dict[str, Forked | Exception] = {}
    limiter = anyio.CapacityLimiter(_concurrency())
    call = _Call(context, driver, template, manifest, options, called_at, limiter, results)
    try:
        async with anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(_attempt, call, record)
        made = report(context, manifest, records, results, called_at)
        await _discard_quietly(context, [one for one in records if isinstance(results[one.id], Exception)])
    except BaseException:
        await _discard_quietly(context, records)
        raise
    return ForkOutcome(
        made, {one.name: error for one in records if isinstance(error := results[one.id], Exception)}
    )


async def _discard_quietly(context: Context, records: Sequence[Record]) -> None:
    try:
        await discard_all(context, records)
    except (RametError, OSError):
        pass  # the reaper of the next ramet process tries again


def _concurrency() -> int:
    """How many forks are under way at once: spawning and the guest's first steps are the host's CPU's
    work.
    """
    return 2 * (os.cpu_count() or 1)


@dataclass(frozen=True)
class _Call:
    """What all forks of one call have in common."""

    context: Context
    driver: Driver
    template: Path
    manifest: Manifest
    options: ForkOptions
    called_at: float
    limiter: anyio.CapacityLimiter
    results: dict[str, Forked | Exception]


async def _attempt(call: _Call, record: Record) -> None:
    try:
        async with call.limiter:
            call.results[record.id] = await _one(call, record)
    except Exception as error:
        call.results[record.id] = error


async def _one(call: _Call, record: Record) -> Forked:
    context, driver = call.context, call.driver
    marks = [call.called_at, time.perf_counter()]
    directory = context.directory(record)
    try:
        parts = await anyio.to_thread.run_sync(_clone, call, directory)
    except (DamagedError, FilesystemError):
        assert record.parent is not None
        context.store.get(record.parent)  # nothing is damaged when it has just been removed: as above
        raise
    marks.append(time.perf_counter())
    machine = msgspec.structs.replace(record.machine, disks=tuple(one.disk for one in parts.disks))
    vmm = await driver.restore(directory, machine)
    try:
        marks.append(time.perf_counter())
        await vmm.load_vmstate(VMSTATE_FILE)
        marks.append(time.perf_counter())
        await vmm.resume()
        marks.append(time.perf_counter())
        identity = await prove(context, record, vmm.process, limit_s=READY_LIMIT_S)
        marks.append(time.perf_counter())
        running = running_vmm(directory, vmm)
        record = context.store.change(
            record.id,
            lambda one: msgspec.structs.replace(one.moved(Move.BOOT, vmm=running), machine=machine),
        )
    except BaseException:
        with anyio.CancelScope(shield=True):
            await vmm.kill()
        raise
    queued, clone, spawn, load, resume, ready = (
        round((after - before) * 1000, 3) for before, after in pairwise(marks)
    )
    total = round((marks[-1] - call.called_at) * 1000, 3)
    timings = Timings(
        queued=queued,
        capture=0,
        pause=0,
        clone=clone,
        spawn=spawn,
        load=load,
        resume=resume,
        ready=ready,
        total=total,
    )
    return Forked(record, parts.memory, parts.disks, identity, timings)


class _Parts(NamedTuple):
    memory: Shared
    disks: tuple[ForkedDisk, ...]


def _clone(call: _Call, directory: Path) -> _Parts:
    """The fork's own directory: the parts shared, the rest copied, nothing left that leads outside (I3)."""
    template, driver, options, manifest = call.template, call.driver, call.options, call.manifest
    clone_directory(template, directory, skip_rel_paths=frozenset({*manifest.parts, *_SOURCES_OWN}))
    directory.chmod(0o700)
    memory = share_file(
        template / MEM_FILE,
        directory / MEM_FILE,
        share_memory=options.share_memory,
        allow_link=Ability.MAPS_PRIVATELY in driver.abilities,
        why_no_link=f"{driver.name} doesn't map memory privately",
    )
    _require(options, "memory", memory)
    disks = tuple(
        fork_disk(template, directory, disk, share=options.share_memory) for disk in manifest.machine.disks
    )
    for disk in disks:
        _require(options, f"its disk `{disk.disk.name}`", disk)
    of_disks = {name for disk in manifest.machine.disks for name in files_of(disk)}
    for part in manifest.parts:
        if part != MEM_FILE and part not in of_disks:
            share_file(template / part, directory / part)
        # A copy may have fewer blocks than its original, so there it is the original that is looked at.
        linked = _same_file(template / part, directory / part)
        check_part(manifest, directory if linked else template, part)
    return _Parts(memory, disks)


def _require(options: ForkOptions, what: str, given: Shared | ForkedDisk) -> None:
    if options.require_shared and given.mode != "shared":
        raise NotSharedError(
            f"{what} would be {given.mode}, not shared: {given.reason}",
            hint="leave --require-shared out to accept that",
        )


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


def _reserve(
    context: Context, source: Record, manifest: Manifest, name: str | None, count: int
) -> list[Record]:
    """Records for `count` forks, in one transaction.

    Invented names are invented again when another caller was quicker.
    """
    for _ in range(_NAME_TRIES):
        names = fork_names(
            count, name=name, source=source.name, taken=(one.name for one in context.store.all())
        )
        records = [
            msgspec.structs.replace(
                source,
                id=new_id(),
                name=fork_name,
                state=State.CREATED,
                machine=manifest.machine,
                parent=source.id,
                generation=manifest.generation + 1,
                machine_id=uuid4().hex,
                created_at=now(),
                labels={},
                auto_remove=False,
                owner=processes.this_process(),
            )
            for fork_name in names
        ]
        try:
            context.store.add(records)
        except NameTakenError:
            if name is not None:
                raise
            continue
        return records
    raise NameTakenError(f"no free names for forks of {source.name}", hint="give them one with --name")


def _require_count(count: int) -> None:
    if not 1 <= count <= MOST_AT_ONCE:
        raise UsageError(
            f"{count} forks can't be made in one call",
            hint=f"ask for 1 to {MOST_AT_ONCE}: each is a process and about ten open files of this machine",
        )


def _require_template(source: Record) -> None:
    if source.state is State.TEMPLATE:
        return
    if source.state in {State.RUNNING, State.PAUSED}:
        raise WrongStateError(
            f"{source.name} is {source.state}: only a template can be forked so far",
            hint=f"`ramet template {source.name}` first; it ends the instance and keeps its memory for forks",
        )
    raise WrongStateError(
        f"{source.name} is {source.state}: it can't be forked", hint=next_step(source.state, source.name)
    )
