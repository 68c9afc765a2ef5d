"""Bringing a guest up from a capture: what a fork, a restore and a rewind have in common.

A directory of its own, into which the parts are shared; each held against the manifest; a VMM on them; the
delta written into its private mapping before anything in it looks at guest memory; vmstate; resume; proof.
Guest RAM is neither read nor written on the host, but for the delta.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec

from ramet.disk.clone import clone_directory
from ramet.disk.volumes import ForkedDisk, files_of, fork_disk
from ramet.drivers.api import Ability, Driver, ResumesOnLoad, StartsEmpty, Vmm
from ramet.engine.connections import Connections
from ramet.engine.context import Context
from ramet.engine.manifest import (
    Manifest,
    check_part,
    check_vmstate,
    is_part_name,
    parts_to_read,
    read_manifest,
)
from ramet.engine.proof import prove
from ramet.engine.running import console_bytes, running_vmm
from ramet.engine.timeline import Timeline
from ramet.errors import DamagedError, FilesystemError, NotSharedError, VmmTimeoutError, WrongStateError
from ramet.guest.messages import IdentityReply
from ramet.host import process_limit, processes, threads
from ramet.host.files import filesystem_errors
from ramet.host.share import Shared, can_link, share_file
from ramet.memory.delta import apply_delta
from ramet.model.lifecycle import State
from ramet.model.record import Machine, ProcessRef, Record, RunningVmm
from ramet.paths import (
    CONFIG_FILE,
    CONFIRMED_FILE,
    MANIFEST_FILE,
    MEM_FILE,
    ORIGIN_FILE,
    VMSTATE_FILE,
)
from ramet.units import KIB, MIB

READY_LIMIT_S = 60.0
_SOURCES_OWN = (MANIFEST_FILE, CONFIG_FILE, ORIGIN_FILE, CONFIRMED_FILE)
"""What a capture's directory has that is of no meaning to what is brought up from it."""
_COMPACTED_MEANWHILE = 3
_QUICKLY_COPIED_BYTES = 256 * KIB


class ForkOptions(NamedTuple):
    """How memory may be had: `require_shared` makes anything but sharing an error, `share_memory=False`
    copies on purpose.
    """

    require_shared: bool = False
    share_memory: bool = True


class Origin(NamedTuple):
    """A capture that guests are brought up from."""

    directory: Path
    manifest: Manifest
    name: str
    """What its guests are named after."""
    parent: str
    """The id of what was captured."""
    snapshot: str | None
    """The id of the snapshot that it is, if people can refer to it."""
    title: str
    """What it is called in messages."""
    require_there: Callable[[], object]
    """Raises `NotFoundError` once it has been removed: nothing is damaged then, and that is said instead."""

    @property
    def ref(self) -> str:
        """What commands take for it: an id."""
        return self.snapshot or self.parent


def origin_of(context: Context, record: Record) -> Origin:
    """The capture that an instance's own directory is: a template's, or one's in standby.

    Raises `DamagedError`, or `NotFoundError` when it has just been removed.
    """
    directory = context.directory(record)
    try:
        manifest = read_manifest(directory)
    except DamagedError:
        _require_capture(context, record)
        raise
    return Origin(
        directory=directory,
        manifest=manifest,
        name=record.name,
        parent=record.id,
        snapshot=None,
        title=record.name,
        require_there=partial(_require_capture, context, record),
    )


def _require_capture(context: Context, record: Record) -> None:
    now = context.store.get(record.id)
    if now.state not in {State.TEMPLATE, State.STANDBY}:
        raise WrongStateError(f"{now.name} has just become {now.state}", hint="try again")


async def require_parts(origin: Origin) -> None:
    """Check each of its parts against the manifest, once per call: one that is missing is damage, and not a
    link that failed. Content is read where the facts alone don't tell, in a thread; the vmstate's always.

    Raises `DamagedError`; nothing when it was compacted meanwhile: `take_parts` looks again.
    """
    try:
        for part in parts_to_read(origin.manifest, origin.directory):
            await threads.run(check_part, origin.manifest, origin.directory, part)
        vmstate = partial(check_vmstate, origin.manifest, origin.directory)
        # A thread costs as much as the 64 KiB that a usual one has.
        is_large = origin.manifest.parts[VMSTATE_FILE].facts.size_bytes > MIB
        await threads.run(vmstate) if is_large else vmstate()
    except DamagedError as error:
        origin.require_there()
        if read_manifest(origin.directory) != origin.manifest:
            return
        if origin.manifest.memory.compressed is None:
            raise
        raise DamagedError(
            error.message,
            hint=f"if it is the memory, `ramet snapshot decompress {origin.ref}` makes it anew from the"
            " compressed file",
        ) from error


class Parts(NamedTuple):
    """What a directory has got of a capture, and how."""

    manifest: Manifest
    memory: Shared
    disks: tuple[ForkedDisk, ...]
    delta_fd: int | None
    """The delta, open; it is closed once it is written into the VMM's memory."""

    def close(self) -> None:
        """Close what is open."""
        if self.delta_fd is not None:
            os.close(self.delta_fd)


class Loaded(NamedTuple):
    """A VMM with a guest in it as it was captured."""

    machine: Machine
    """As the VMM has it: with disks of its own."""
    vmm: Vmm
    running: RunningVmm
    is_resumed: bool
    """False: the guest is still paused."""


class Living(NamedTuple):
    """A guest that has been brought up and has proved itself."""

    record: Record
    """With the machine as its VMM has it."""
    vmm: Vmm
    running: RunningVmm
    identity: IdentityReply


def is_quick(origin: Origin, driver: Driver, directory: Path, options: ForkOptions, count: int) -> bool:
    """Whether taking its parts `count` times is some system calls each, and so not worth a thread: memory
    and disks can be linked into `directory`, and what can't is small.
    """
    manifest = origin.manifest
    copied = [disk.file for disk in manifest.machine.disks if disk.format == "raw"]
    try:
        return (
            options.share_memory
            and Ability.MAPS_PRIVATELY in driver.abilities
            and sum(manifest.parts[file].facts.allocated_bytes for file in copied) <= _QUICKLY_COPIED_BYTES
            and can_link(origin.directory / manifest.memory.base, directory, count)
        )
    except FilesystemError:
        return False  # it is being compacted, say: `take_parts` finds out


async def take(
    origin: Origin,
    driver: Driver,
    directory: Path,
    options: ForkOptions,
    *,
    is_quick: bool = False,
    into: bool = False,
) -> Parts:
    """Take the parts of a capture as `take_parts` does, in a thread unless that `is_quick`: a thread waits
    longer for its turn at the interpreter than some links take.
    """
    work = partial(take_parts, origin, driver, directory, options, into=into)
    return work() if is_quick else await threads.run(work)


def take_parts(
    origin: Origin, driver: Driver, directory: Path, options: ForkOptions, *, into: bool = False
) -> Parts:
    """Make `directory`, with what it needs of the capture: the parts shared, the rest copied, nothing left
    that leads outside (I3). Blocks: for a worker thread, unless it `is_quick`. `into` puts that into one that
    is there; then a capture that is being compacted isn't looked at again.

    Raises `DamagedError`, `FilesystemError`, `NotSharedError`, `NotFoundError`; `directory` may be there
    then.
    """
    for tries_left in reversed(range(_COMPACTED_MEANWHILE)):
        try:
            return _take(origin, driver, directory, options, into=into)
        except (DamagedError, FilesystemError):
            origin.require_there()
            found = read_manifest(origin.directory)
            if into or tries_left == 0 or found == origin.manifest:
                raise
            # It was compacted meanwhile: the same content, in other files.
            origin = origin._replace(manifest=found)
            shutil.rmtree(directory, ignore_errors=True)
    raise AssertionError


def _take(origin: Origin, driver: Driver, directory: Path, options: ForkOptions, *, into: bool) -> Parts:
    source, manifest = origin.directory, origin.manifest
    # What is called as parts are and isn't one is a compaction's, under way or killed on its way.
    skipped = frozenset({*manifest.parts, *_SOURCES_OWN})
    clone_directory(source, directory, skip_rel_paths=skipped, leave_out=is_part_name, into=into)
    directory.chmod(0o700)
    with filesystem_errors("link the manifest into", directory):
        share_file(source / MANIFEST_FILE, directory / ORIGIN_FILE)
    base, delta = manifest.memory.base, manifest.memory.delta
    memory = share_file(
        source / base,
        directory / MEM_FILE,
        share_memory=options.share_memory,
        allow_link=Ability.MAPS_PRIVATELY in driver.abilities,
        why_no_link=f"{driver.name} doesn't map memory privately",
    )
    _require(options, "memory", memory)
    disks = tuple(
        fork_disk(source, directory, disk, share=options.share_memory) for disk in manifest.machine.disks
    )
    for disk in disks:
        _require(options, f"its disk `{disk.disk.name}`", disk)
    modes: dict[str, str] = {base: memory.mode}
    for disk, frozen in zip(disks, manifest.machine.disks, strict=True):
        modes.update(dict.fromkeys(files_of(frozen), disk.mode))
    for part in manifest.parts:
        if part != delta and part not in modes:
            modes[part] = share_file(source / part, directory / part).mode
        # A copy may have fewer blocks than its original, so there it is the original that is looked at.
        if modes.get(part) == "shared":
            own = MEM_FILE if part == base else part
            check_part(manifest, directory, part, name=own, capture=source)
        else:
            check_part(manifest, source, part)
    delta_fd = None
    if delta is not None:
        with filesystem_errors("open", source / delta):
            delta_fd = os.open(source / delta, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    return Parts(manifest, memory, disks, delta_fd)


def _require(options: ForkOptions, what: str, given: Shared | ForkedDisk) -> None:
    if options.require_shared and given.mode != "shared":
        raise NotSharedError(
            f"{what} would be {given.mode}, not shared: {given.reason}",
            hint="leave --require-shared out to accept that",
        )


async def load(
    driver: Driver,
    directory: Path,
    parts: Parts,
    connections: Connections,
    *,
    resume: bool,
    mark: Path | None = None,
    timeline: Timeline | None = None,
) -> Loaded:
    """Start a VMM in `directory` on `parts`, and load the captured guest into it, paused. With `resume` the
    guest is resumed too, if the VMM takes both in one request.

    Until `connections.vmm` is closed the VMM is talked to in one session. `mark` is the directory that the
    VMM will belong to, where that is another one. `timeline` gets the ends of `spawn` and `load`. Raises
    `VmmError`, `UnavailableError`, `DamagedError`; no VMM is left then. `parts` is closed in any case.
    """
    machine = machine_on(parts)
    try:
        with process_limit.named():
            vmm = await driver.restore(directory, machine, mark=mark, sessions=connections.vmm)
    except BaseException:
        parts.close()
        raise
    return await _load_into(
        driver, directory, machine, vmm, parts, connections, resume=resume, timeline=timeline
    )


def machine_on(parts: Parts) -> Machine:
    """The machine that was captured, with the disks that were taken."""
    return msgspec.structs.replace(parts.manifest.machine, disks=tuple(one.disk for one in parts.disks))


async def settle_in(
    driver: Driver,
    directory: Path,
    process: ProcessRef,
    parts: Parts,
    connections: Connections,
    *,
    timeline: Timeline,
) -> Loaded:
    """Load a guest into `process`, a VMM that was started empty, and resume it. Errors as `load`."""
    assert isinstance(driver, StartsEmpty)
    try:
        machine = machine_on(parts)
        vmm = await driver.settle_in(directory, process, machine, connections.vmm)
    except BaseException:
        parts.close()
        with anyio.CancelScope(shield=True):
            await processes.kill(process)
        raise
    return await _load_into(
        driver, directory, machine, vmm, parts, connections, resume=True, timeline=timeline
    )


async def _load_into(
    driver: Driver,
    directory: Path,
    machine: Machine,
    vmm: Vmm,
    parts: Parts,
    connections: Connections,
    *,
    resume: bool,
    timeline: Timeline | None,
) -> Loaded:
    """Load a guest into a VMM that is there, as `load` does."""
    console_start = console_bytes(directory)
    early = Ability.LOADS_DELTA_BEFORE_VMSTATE in driver.abilities
    is_complete = early or parts.delta_fd is None
    at_once = vmm if resume and is_complete and isinstance(vmm, ResumesOnLoad) else None
    try:
        try:
            if timeline is not None:
                timeline.mark("spawn")
            if early:
                running = running_vmm(driver, directory, machine, vmm, console_start=console_start)
                await _apply(parts, running)
            if at_once is not None:
                await connections.reach_agent(directory, machine)
                await at_once.load_and_resume(VMSTATE_FILE)
            else:
                await vmm.load_vmstate(VMSTATE_FILE)
            if not early:
                running = running_vmm(driver, directory, machine, vmm, console_start=console_start)
                await _apply(parts, running)
        finally:
            parts.close()
        if timeline is not None:
            timeline.mark("load")
    except BaseException:
        with anyio.CancelScope(shield=True):
            await vmm.kill()
        raise
    return Loaded(machine, vmm, running, is_resumed=at_once is not None)


async def resume_and_verify(
    context: Context,
    record: Record,
    directory: Path,
    loaded: Loaded,
    connections: Connections,
    *,
    resume_limit_s: float | None = None,
    timeline: Timeline | None = None,
) -> Living:
    """Resume a guest that has been loaded, unless it is resumed already, and return when it has proved to be
    `record`'s.

    `connections.vmm` is closed in between: the VMM isn't talked to any more. `resume_limit_s` is for a VMM
    that may hang. `timeline` gets the ends of `resume` and `ready`. Raises `VmmError`, `GuestError`; no VMM
    is left then.
    """
    record = msgspec.structs.replace(record, machine=loaded.machine)
    vmm = loaded.vmm
    try:
        if not loaded.is_resumed:
            await connections.reach_agent(directory, record.machine)
            with anyio.move_on_after(resume_limit_s) as waiting:
                await vmm.resume()
            if waiting.cancelled_caught:
                raise VmmTimeoutError(f"{record.name}: its VMM didn't go on within {resume_limit_s:g} s")
        if timeline is not None:
            timeline.mark("resume")
        await connections.vmm.aclose()
        identity = await prove(
            context,
            record,
            vmm.process,
            limit_s=READY_LIMIT_S,
            directory=directory,
            stream=connections.stream,
        )
        if timeline is not None:
            timeline.mark("ready")
    except BaseException:
        with anyio.CancelScope(shield=True):
            await vmm.kill()
        raise
    return Living(record, vmm, loaded.running, identity)


async def _apply(parts: Parts, running: RunningVmm) -> None:
    if parts.delta_fd is not None:
        await threads.run(apply_delta, parts.delta_fd, running.process.pid, running.ram)
