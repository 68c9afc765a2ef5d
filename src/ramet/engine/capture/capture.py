"""Capture: record a guest's state at one moment, with a short pause.

The order is pause, disks, vmstate, *then* the list of changed pages (saving vmstate itself dirties guest
pages) and their copies, resume. Everything that can be done before the pause or after the resume is done
there: files are linked and overlays made before; copied pages lie in memory and are written, synced and
published after. A guest whose VMM is to end anyway stays paused, and its pages are written directly to the
disk.

If the guest has a mem-file with content, the capture links it as its base, and has the pages in which the
guest differs from it as a delta: all of them, an inherited delta's too, so deltas don't pile up. A booted
guest has no mem-file, and gets a mem-file of the pages that it has touched.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from ramet.concurrency import alongside
from ramet.disk.volumes import sync_disks
from ramet.drivers.interface import FreezesDisks, SavesState, TellsVersion, Vmm
from ramet.engine.agent.session import connections_may_be_cut, require_clock
from ramet.engine.capture.overlays import commit_overlays, freeze_disks
from ramet.engine.capture.plan import Plan, drop_unopened, prepare
from ramet.engine.capture.publish import UntilCancelled, publish
from ramet.engine.context import Context
from ramet.engine.lifecycle.jobs import resume_guest
from ramet.engine.manifest import Manifest
from ramet.errors import RametError, UnavailableError
from ramet.memory.pagemap import Run
from ramet.memory.pages import BufferedPages, LivePages, Pages, buffer_pages
from ramet.memory.ram import changed_pages
from ramet.model.lifecycle import State
from ramet.model.record import Record
from ramet.progress import report
from ramet.system import liveness, threads
from ramet.system.memfile import memory_file
from ramet.system.pause_watchdog import resume_on_death
from ramet.system.share import Shared

T = TypeVar("T")


class _Buffered(NamedTuple):
    """The result of the short pause of a guest that is resumed afterwards."""

    pages: BufferedPages
    begun: float
    pause_ms: float
    disks: dict[str, Shared]


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """A capture that is on the disk."""

    manifest: Manifest
    begun: float
    """The beginning, by `time.perf_counter`."""
    capture_ms: float
    pause_begun: float
    pause_ms: float
    """Length of the guest's pause; 0 when the guest was paused already, or stays paused."""
    disks: dict[str, Shared]
    """The duplication of each disk that can't be put under an overlay, by its name (I4)."""


async def capture(
    context: Context,
    record: Record,
    directory: Path,
    *,
    goes_on: bool,
    digests: bool = True,
    labels: dict[str, str] | None = None,
    whole: bool = False,
) -> Captured:
    """Capture a running or paused instance. The caller has written its intent into `record`.

    With `goes_on` the instance is afterwards in its state from before, so it runs if it ran; `directory` is
    an empty directory of the same filesystem. Without, `directory` is the instance's own: the instance is
    left paused there for its VMM to be ended, and its disks' files are parts of the capture; with `whole` it
    has a mem-file with all of its memory, where it would have a delta. A capture without `digests` can't be
    verified or exported.

    Raises `UnavailableError` when its memory may not be read, `FilesystemError` when it doesn't fit,
    `VmmError`, `DamagedError`. Then the instance runs if it ran, or, if its VMM can't be told that, is paused
    in its record, too; the caller removes the content of `directory`.
    """
    started = time.perf_counter()
    driver = present = context.driver(record.driver)
    version = here = await driver.version()
    vmm = context.vmm(record)
    if isinstance(vmm, TellsVersion):
        # It may have been started before the program was upgraded.
        version = await vmm.own_version() or here
        driver = driver.as_of(version)
    # Only `snapshot create` resumes the guest and takes digests: that capture may be for another machine.
    # One that ends the guest, or is forked at once, has to be of use here.
    is_snapshot = goes_on and digests
    if not is_snapshot and not present.takes_vmstate_of(version):
        raise UnavailableError(
            f"{record.name} runs in {driver.name} {version}; this machine has {here}, which can't restore it",
            hint=f"set {driver.setting} to the path of a {driver.name} {version}, or run"
            f" `ramet snapshot create {record.name}`, which keeps the guest's state for that release",
        )
    if record.vmm is None or not isinstance(vmm, SavesState):
        raise UnavailableError(f"{driver.name} {version} can't save a guest's state")
    async with AsyncExitStack() as closing:
        vmstate_fd = closing.enter_context(memory_file("vmstate"))
        plan = await threads.run(
            prepare, record, record.vmm, driver, version, context.directory(record), directory, goes_on, vmm
        )
        pages: Pages
        pause_begun, pause_ms = started, 0.0
        disks: dict[str, Shared] = {}
        if goes_on:
            buffered, pause_begun, pause_ms, disks = await _buffer(context, plan, vmm, vmstate_fd)
            pages = closing.enter_context(buffered)
        else:
            if record.state is State.RUNNING:
                hold = [context.locks[record.id]]
                await closing.enter_async_context(resume_on_death(plan.own, vmm.resume_steps(), hold=hold))
            pages = await _hold(plan, vmm, vmstate_fd)
        write = partial(publish, plan, UntilCancelled(pages), vmstate_fd, digests, labels or {}, whole=whole)
        if goes_on and record.state is State.RUNNING:
            connections_may_be_cut(context, record)
            async with alongside(partial(require_clock, context, record), finish=True):
                manifest = await threads.run(write)
        else:
            manifest = await threads.run(write)
    # A thread's work isn't cut short by a cancellation, but it counts for nothing then.
    await anyio.lowlevel.checkpoint_if_cancelled()
    capture_ms = round((time.perf_counter() - started) * 1000, 3)
    return Captured(
        manifest=manifest,
        begun=started,
        capture_ms=capture_ms,
        pause_begun=pause_begun,
        pause_ms=pause_ms,
        disks=disks,
    )


async def _buffer(context: Context, plan: Plan, vmm: Vmm, vmstate_fd: int) -> _Buffered:
    """Take the short pause of a guest that is resumed afterwards."""
    assert isinstance(vmm, SavesState)
    runs = plan.record.state is State.RUNNING
    async with AsyncExitStack() as leaving:
        try:
            await leaving.enter_async_context(vmm.session())
            if plan.overlays:
                assert isinstance(vmm, FreezesDisks)
                await vmm.prepare_overlays(plan.overlays)
        except BaseException:
            drop_unopened(plan.own, plan.overlays)
            raise
        if plan.overlays:
            assert isinstance(vmm, FreezesDisks)
            leaving.push_async_callback(_shielded, lambda: commit_overlays(context, plan, vmm))
        if runs:
            # With the instance's lock: no other process comes between this process's death and the resume.
            hold = [context.locks[plan.record.id]]
            await leaving.enter_async_context(resume_on_death(plan.own, vmm.resume_steps(), hold=hold))
            await threads.run(sync_disks, plan.own, plan.record.machine.disks)
        begun = time.perf_counter()
        async with _resuming(context, plan.record, vmm) if runs else AsyncExitStack():
            if runs:
                await vmm.pause()
            disks = await freeze_disks(plan, vmm)
            await vmm.save_vmstate(vmstate_fd)
            pages = await _off_loop(_read_changed, plan)
        pause_ms = round((time.perf_counter() - begun) * 1000, 3) if runs else 0.0
    return _Buffered(pages, begun, pause_ms, disks)


async def _hold(plan: Plan, vmm: Vmm, vmstate_fd: int) -> Pages:
    """Pause a guest whose VMM is to end: the pause lasts until then. An error ends the pause."""
    assert isinstance(vmm, SavesState)
    runs = plan.record.state is State.RUNNING
    async with vmm.session():
        if runs:
            await vmm.pause()
        await vmm.save_vmstate(vmstate_fd)
        return LivePages(liveness.local_pid(plan.running.process), await _off_loop(_list_changed, plan))


@asynccontextmanager
async def _resuming(context: Context, record: Record, vmm: Vmm) -> AsyncIterator[None]:
    """Resume the guest at the end, also after an error inside, which is the error that is raised."""
    try:
        yield
    except BaseException:
        # That it couldn't be resumed is in its record, which says that it is paused.
        with anyio.CancelScope(shield=True), suppress(RametError):
            await resume_guest(context, record, vmm)
            await require_clock(context, record)
        raise
    with anyio.CancelScope(shield=True):
        await resume_guest(context, record, vmm)


async def _shielded(step: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope(shield=True):
        await step()


async def _off_loop(function: Callable[[Plan], T], plan: Plan) -> T:
    return await threads.run(function, plan)


def _list_changed(plan: Plan) -> list[Run]:
    return changed_pages(liveness.local_pid(plan.running.process), plan.running.ram, plan.mem)


def _read_changed(plan: Plan) -> BufferedPages:
    report("copying memory")
    return buffer_pages(liveness.local_pid(plan.running.process), _list_changed(plan))
