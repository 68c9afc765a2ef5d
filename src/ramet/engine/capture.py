"""Capture: what a guest is at one moment, written down while it hardly notices.

The order is pause, disks, vmstate, *then* the list of changed pages (saving vmstate itself dirties guest
pages) and their copies, resume. Everything that can be done before the pause or after the resume is: files
are linked and overlays made before; what was copied lies in memory meanwhile and is written, synced and
published after. A guest whose VMM is to end anyway stays paused, and its pages go straight to the disk.

A guest that has a mem-file with something in it has that one as the base of the capture, by a link, and the
pages in which it differs as a delta: all of them, an inherited delta's too, so deltas don't pile up. One that
has none, because it was booted, gets a mem-file of what it has touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import msgspec

from ramet.disk.chains import chain_of
from ramet.disk.volumes import files_of, make_overlay, next_overlay, settle, snapshot_raw
from ramet.drivers.api import Ability, Driver, FreezesDisks, SavesState, Vmm
from ramet.engine.context import Context
from ramet.engine.manifest import FORMAT, Manifest, Memory, Part, Source, read_manifest
from ramet.engine.proof import connections_may_be_cut, correct_clock
from ramet.engine.running import with_ram
from ramet.errors import DamagedError, RametError, UnavailableError
from ramet.host.clock import now
from ramet.host.cpu import host_cpu
from ramet.host.deadman import armed
from ramet.host.files import allocated_bytes, fsync_directory, open_regular, sync, write_durably
from ramet.host.share import share_file
from ramet.host.staging import memory_file, write_out
from ramet.memory.delta import write_delta, write_mem_file
from ramet.memory.integrity import digest, facts_of
from ramet.memory.mappings import FileIdentity, blocks_of_open_file, identity_of
from ramet.memory.pagemap import Run
from ramet.memory.pages import LivePages, Pages, StagedPages, Stretch, stage
from ramet.memory.ram import changed_pages
from ramet.model.lifecycle import State
from ramet.model.record import Disk, Machine, Record, RunningVmm
from ramet.paths import (
    DELTA_FILE,
    INITRAMFS_FILE,
    KERNEL_FILE,
    MANIFEST_FILE,
    MEM_FILE,
    ORIGIN_FILE,
    VMSTATE_FILE,
)

_CLOCK_LIMIT_S = 5.0

T = TypeVar("T")


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """A capture that is on the disk."""

    manifest: Manifest
    capture_ms: float
    pause_ms: float
    """How long the guest stood still; 0 when it was paused already, or isn't to go on."""


@dataclass(frozen=True)
class _Plan:
    """What is known before the pause."""

    record: Record
    running: RunningVmm
    driver: Driver
    driver_version: str
    own: Path
    directory: Path
    goes_on: bool
    base: Part | None
    """The mem-file that the guest runs on, where it has something in it."""
    origin: Manifest | None
    overlays: tuple[tuple[Disk, Disk], ...]
    """Disks that go on in a new file: the frozen one, the new one."""

    @property
    def mem(self) -> FileIdentity | None:
        """The mem-file that the VMM has mapped."""
        if not self.running.mem_inode:
            return None
        return FileIdentity(self.running.mem_device, self.running.mem_inode)


async def capture(
    context: Context,
    record: Record,
    directory: Path,
    *,
    goes_on: bool,
    digests: bool = True,
    labels: dict[str, str] | None = None,
) -> Captured:
    """Capture a running or paused instance. The caller has marked the change in `record`.

    With `goes_on` it is afterwards as it was before, and runs if it ran; `directory` is an empty one of the
    same filesystem. Without, `directory` is its own: it is left paused there for its VMM to be ended, and its
    disks' files are parts of the capture. Without `digests` it can't be verified or exported.

    Raises `UnavailableError` when its memory may not be read, `FilesystemError` when it doesn't fit,
    `VmmError`, `DamagedError`. It then runs if it ran; what is in `directory` is for the caller to remove.
    """
    started = time.perf_counter()
    driver = context.driver(record.driver)
    version = await driver.version()
    vmm = context.vmm(record)
    if record.vmm is None or not isinstance(vmm, SavesState):
        raise UnavailableError(f"{driver.name} {version} can't save a guest's state")
    plan = await anyio.to_thread.run_sync(
        _prepare, record, record.vmm, driver, version, context.directory(record), directory, goes_on, vmm
    )
    async with AsyncExitStack() as closing:
        vmstate = closing.enter_context(memory_file("vmstate"))
        pages: Pages
        pause_ms = 0.0
        if goes_on:
            staged, pause_ms = await _stage(context, plan, vmm, vmstate)
            pages = closing.enter_context(staged)
        else:
            pages = await _freeze(plan, vmm, vmstate)
        publish = partial(_publish, plan, _UntilCancelled(pages), vmstate, digests, labels or {})
        if goes_on and record.state is State.RUNNING:
            connections_may_be_cut(context, record)
            manifest = await _beside(publish, partial(correct_clock, context, record, _CLOCK_LIMIT_S))
        else:
            manifest = await anyio.to_thread.run_sync(publish)
    # A thread's work isn't cut short by a cancellation, but it counts for nothing then.
    await anyio.lowlevel.checkpoint_if_cancelled()
    capture_ms = round((time.perf_counter() - started) * 1000, 3)
    return Captured(manifest=manifest, capture_ms=capture_ms, pause_ms=pause_ms)


async def _stage(context: Context, plan: _Plan, vmm: Vmm, vmstate: int) -> tuple[StagedPages, float]:
    """The short pause of a guest that goes on."""
    assert isinstance(vmm, SavesState)
    runs = plan.record.state is State.RUNNING
    async with AsyncExitStack() as leaving:
        await leaving.enter_async_context(vmm.session())
        if plan.overlays:
            assert isinstance(vmm, FreezesDisks)
            await vmm.prepare_overlays(plan.overlays)
            leaving.push_async_callback(_shielded, lambda: _settle_overlays(context, plan, vmm))
        if runs:
            # With the instance's lock: nobody comes between this process's death and the rescue.
            hold = [context.locks[plan.record.id]]
            await leaving.enter_async_context(armed(plan.own, vmm.rescue(), hold=hold))
            await anyio.to_thread.run_sync(settle, plan.own, plan.record.machine.disks)
        begun = time.perf_counter()
        async with _resuming(vmm) if runs else AsyncExitStack():
            if runs:
                await vmm.pause()
            await _freeze_disks(plan, vmm)
            await vmm.save_vmstate(vmstate)
            pages = await _off_loop(_read_changed, plan)
        pause_ms = round((time.perf_counter() - begun) * 1000, 3) if runs else 0.0
    return pages, pause_ms


async def _freeze(plan: _Plan, vmm: Vmm, vmstate: int) -> Pages:
    """The pause of a guest whose VMM is to end: it lasts until that. An error ends it."""
    assert isinstance(vmm, SavesState)
    runs = plan.record.state is State.RUNNING
    async with vmm.session():
        if runs:
            await vmm.pause()
        await vmm.save_vmstate(vmstate)
        return LivePages(plan.running.process.pid, await _off_loop(_list_changed, plan))


@asynccontextmanager
async def _resuming(vmm: Vmm) -> AsyncIterator[None]:
    """The guest goes on at the end, whatever happens inside. The error inside is the one that is raised."""
    try:
        yield
    except BaseException:
        with anyio.CancelScope(shield=True):
            try:
                await vmm.resume()
            except RametError:
                pass  # its VMM has died; or it hangs, and the next ramet process resumes it
        raise
    with anyio.CancelScope(shield=True):
        await vmm.resume()


async def _beside(work: Callable[[], T], other: Callable[[], Coroutine[Any, Any, None]]) -> T:
    """What `work` gives, in a thread, while `other` is done. An error of it is raised as it is."""
    done: list[T] = []
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        try:
            done.append(await anyio.to_thread.run_sync(work))
        except Exception as error:
            failure = error
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return done[0]


async def _shielded(step: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope(shield=True):
        await step()


async def _freeze_disks(plan: _Plan, vmm: Vmm) -> None:
    """The disks as they are at this moment: an overlay takes what is written from now on, or the file is
    duplicated.
    """
    if plan.overlays:
        assert isinstance(vmm, FreezesDisks)
        await vmm.switch_overlays(plan.overlays)
    for disk in plan.record.machine.disks:
        if disk.format == "raw":
            await anyio.to_thread.run_sync(snapshot_raw, plan.own / disk.file, plan.directory / disk.file)


async def _settle_overlays(context: Context, plan: _Plan, vmm: FreezesDisks) -> None:
    """The record names the files that the disks are really in now; an overlay that wasn't needed goes."""
    active = await vmm.active_files()
    switched = {frozen.file: new for frozen, new in plan.overlays if active.get(frozen.name) == new.file}
    unused = [pair for pair in plan.overlays if pair[0].file not in switched]
    if switched:
        chained = {
            file: msgspec.structs.replace(new, backing=chain_of(plan.own, new.file)[:-1])
            for file, new in switched.items()
        }
        context.store.change(plan.record.id, lambda one: with_disks(one, chained))
    if unused:
        try:
            await vmm.drop_overlays(unused)
        finally:
            for _, new in unused:
                (plan.own / new.file).unlink(missing_ok=True)


def with_disks(record: Record, switched: dict[str, Disk]) -> Record:
    """`record` with the disks that went on in another file."""
    disks = tuple(switched.get(disk.file, disk) for disk in record.machine.disks)
    return msgspec.structs.replace(record, machine=msgspec.structs.replace(record.machine, disks=disks))


async def _off_loop(function: Callable[[_Plan], T], plan: _Plan) -> T:
    return await anyio.to_thread.run_sync(function, plan)


def _list_changed(plan: _Plan) -> list[Run]:
    return changed_pages(plan.running.process.pid, plan.running.ram, plan.mem)


def _read_changed(plan: _Plan) -> StagedPages:
    return stage(plan.running.process.pid, _list_changed(plan))


def _prepare(
    record: Record,
    running: RunningVmm,
    driver: Driver,
    version: str,
    own: Path,
    directory: Path,
    goes_on: bool,
    vmm: object,
) -> _Plan:
    """Everything before the pause: parts that don't change are linked, overlays made."""
    running = with_ram(driver, record.machine, running)
    origin = read_manifest(own, ORIGIN_FILE) if (own / ORIGIN_FILE).exists() else None
    base = _base(own, running, origin)
    if goes_on:
        if base is not None:
            share_file(own / MEM_FILE, directory / MEM_FILE)
        for name in (KERNEL_FILE, INITRAMFS_FILE):
            if (own / name).exists():
                share_file(own / name, directory / name)
    overlays: list[tuple[Disk, Disk]] = []
    if goes_on and isinstance(vmm, FreezesDisks):
        for disk in record.machine.disks:
            new = next_overlay(disk, own)
            make_overlay(own, new)
            overlays.append((disk, new))
    return _Plan(record, running, driver, version, own, directory, goes_on, base, origin, tuple(overlays))


def _base(own: Path, running: RunningVmm, origin: Manifest | None) -> Part | None:
    """What is known of the mem-file that the guest runs on; None when it has none, or one that is all
    holes.
    """
    if not running.mem_inode:
        return None
    mem = own / MEM_FILE
    if not mem.exists() or identity_of(mem) != (running.mem_device, running.mem_inode):
        # A freeze that failed had put the captured memory in the place of the one that is all holes.
        if blocks_of_open_file(running.process.pid, running.mem_inode) == 0:
            return None
        raise DamagedError(f"{mem} isn't the file any more that its VMM has mapped")
    if allocated_bytes(mem) == 0:
        return None
    return _known_part(mem, origin, origin.memory.base if origin is not None else MEM_FILE)


def _known_part(path: Path, origin: Manifest | None, name: str) -> Part:
    """A part that was published before: its digest is known when nothing about it has changed since."""
    facts = facts_of(path)
    before = origin.parts.get(name) if origin is not None else None
    same = before is not None and (before.facts.size_bytes, before.facts.mtime_ns) == (
        facts.size_bytes,
        facts.mtime_ns,
    )
    return Part(facts=facts, digest=before.digest if before is not None and same else None)


class _UntilCancelled:
    """Pages that are there until the call is cancelled whose thread asks for them."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    @property
    def changed_bytes(self) -> int:
        return self._pages.changed_bytes

    def batches(self) -> Iterator[list[Stretch]]:
        for batch in self._pages.batches():
            anyio.from_thread.check_cancelled()
            yield batch


def _publish(plan: _Plan, pages: Pages, vmstate: int, digests: bool, labels: dict[str, str]) -> Manifest:
    """Everything after the resume: written, synced, described."""
    directory, record = plan.directory, plan.record
    parts: dict[str, Part | None] = {MEM_FILE: plan.base}
    memory = Memory()
    if plan.base is None:
        # A VMM that insists on opening the mem-file for writing needs the permission, unless root's is
        # enough.
        read_only = Ability.OPENS_MEM_FILE_READ_ONLY in plan.driver.abilities
        mode = 0o444 if read_only or os.geteuid() == 0 else 0o600
        write_mem_file(directory / MEM_FILE, pages, memory_bytes=record.machine.memory_bytes, mode=mode)
    else:
        facts = write_delta(
            directory / DELTA_FILE,
            pages,
            memory_bytes=record.machine.memory_bytes,
            base=directory / MEM_FILE,
        )
        memory = Memory(delta=DELTA_FILE, delta_bytes=facts.applied_bytes)
        parts[DELTA_FILE] = None
    (directory / VMSTATE_FILE).unlink(missing_ok=True)  # a link to what it was restored from
    write_out(vmstate, directory / VMSTATE_FILE, mode=0o444)
    parts[VMSTATE_FILE] = None
    for name in (KERNEL_FILE, INITRAMFS_FILE):
        if (directory / name).exists():
            parts[name] = _known_part(directory / name, plan.origin, name)
    machine = _with_chains(plan.own, record.machine)
    for disk in machine.disks:
        for name in files_of(disk):
            if plan.goes_on and disk.format == "qcow2":
                share_file(plan.own / name, directory / name)
            (directory / name).chmod(0o444)
            parts[name] = _known_part(directory / name, plan.origin, name)
    described = {name: _described(directory / name, part, digests) for name, part in parts.items()}
    manifest = Manifest(
        format=FORMAT,
        driver=record.driver,
        driver_version=plan.driver_version,
        machine=machine,
        arguments=plan.driver.arguments(machine),
        ram=plan.driver.ram_regions(machine),
        memory=memory,
        image=record.image,
        kernel_version=record.kernel_version,
        generation=record.generation,
        host_cpu=host_cpu() if record.machine.accelerator == "kvm" else None,
        source=Source(id=record.id, name=record.name, state=record.state, parent=record.parent),
        labels=labels,
        created_at=now(),
        parts=described,
    )
    write_durably(directory / MANIFEST_FILE, manifest.encoded())
    if plan.goes_on:
        fsync_directory(directory.parent)
    return manifest


def _with_chains(own: Path, machine: Machine) -> Machine:
    """The machine with the files that its disks lie over in fact: a chain may have been shortened since the
    record was written.
    """
    disks = []
    for disk in machine.disks:
        if disk.format == "qcow2":
            disk = msgspec.structs.replace(disk, backing=chain_of(own, disk.file)[:-1])
        disks.append(disk)
    return msgspec.structs.replace(machine, disks=tuple(disks))


def _described(path: Path, known: Part | None, digests: bool) -> Part:
    if known is None or known.digest is None:
        # Also a kernel: one copied from another filesystem gets its last blocks when it is written back.
        with open_regular(path) as descriptor:
            sync(descriptor)
    facts = facts_of(path)
    if known is not None and known.digest is not None:
        return Part(facts=facts, digest=known.digest)
    return Part(facts=facts, digest=digest(path) if digests else None)
