"""Load a captured guest into a VMM, resume it, verify it: the common steps of fork, restore and rewind.

`parts` has put the capture's parts into the new directory. Then comes a VMM on them; the delta, written into
its private mapping before anything in the VMM reads guest memory; vmstate; resume; the guest's identity.
Guest RAM is neither read nor written on the host, except for the delta.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec

from ramet.drivers.interface import Ability, Driver, LoadsDelta, ResumesOnLoad, StartsEmpty, Vmm
from ramet.engine.agent.identity import verify_identity
from ramet.engine.context import Context
from ramet.engine.origin import Origin
from ramet.engine.restore.connections import Connections
from ramet.engine.restore.parts import ForkOptions, Parts, take_parts
from ramet.engine.restore.timeline import Timeline
from ramet.engine.vmm.record import console_bytes, running_vmm
from ramet.errors import VmmTimeoutError
from ramet.guest.messages import IdentityReply
from ramet.memory.delta import apply_delta, open_delta
from ramet.model.record import DeltaRun, Machine, ProcessRef, Record, RunningVmm
from ramet.paths import VMSTATE_FILE
from ramet.system import process_limit, processes, threads

READY_LIMIT_S = 60.0


class Loaded(NamedTuple):
    """A VMM with a captured guest in it."""

    machine: Machine
    """The VMM's machine, with its own disks."""
    vmm: Vmm
    running: RunningVmm
    is_resumed: bool
    """False: the guest is still paused."""


class Living(NamedTuple):
    """A guest that has been restored and has proved itself."""

    record: Record
    """With the machine as its VMM has it."""
    vmm: Vmm
    running: RunningVmm
    identity: IdentityReply


async def take_in_thread(
    origin: Origin,
    driver: Driver,
    directory: Path,
    options: ForkOptions,
    *,
    is_quick: bool = False,
    into: bool = False,
) -> Parts:
    """Take the parts of a capture as `take_parts` does, in a thread unless that `is_quick`.

    A thread waits longer for its turn at the interpreter than several links take.
    """
    work = partial(take_parts, origin, driver, directory, options, into=into)
    return work() if is_quick else await threads.run(work)


async def load(
    driver: Driver,
    directory: Path,
    parts: Parts,
    connections: Connections,
    *,
    resume: bool,
    tag: Path | None = None,
    timeline: Timeline | None = None,
) -> Loaded:
    """Start a VMM in `directory` on `parts`, and load the captured guest into it, paused.

    With `resume` the guest is resumed too, if the VMM takes both in one request. Until `connections.vmm` is
    closed, all requests to the VMM are in one session. `tag` is the directory that the VMM will belong to, if
    that is another. `timeline` gets the ends of `spawn` and `load`. Raises `VmmError`, `UnavailableError`,
    `DamagedError`; no VMM is left then. `parts` is closed in any case.
    """
    machine = _machine_on(parts)
    try:
        with process_limit.named():
            vmm = await driver.restore(directory, machine, tag=tag, sessions=connections.vmm)
    except BaseException:
        parts.close()
        raise
    return await _load_into(
        driver, directory, machine, vmm, parts, connections, resume=resume, timeline=timeline
    )


def _machine_on(parts: Parts) -> Machine:
    """Return the captured machine, with the disks that were taken."""
    return msgspec.structs.replace(parts.manifest.machine, disks=tuple(disk.disk for disk in parts.disks))


async def attach_guest(
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
        machine = _machine_on(parts)
        vmm = await driver.attach_guest(directory, process, machine, connections.vmm)
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
    with_delta = vmm if not is_complete and isinstance(vmm, LoadsDelta) else None
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
            elif with_delta is not None:
                assert parts.delta_fd is not None
                if resume:
                    await connections.reach_agent(directory, machine)
                runs = await threads.run(_runs, parts.delta_fd, machine.memory_bytes)
                await with_delta.load_with_delta(VMSTATE_FILE, parts.delta_fd, runs, resume=resume)
            else:
                await vmm.load_vmstate(VMSTATE_FILE)
            if not early:
                running = running_vmm(driver, directory, machine, vmm, console_start=console_start)
                if with_delta is None:
                    await _apply(parts, running)
        finally:
            parts.close()
        if timeline is not None:
            timeline.mark("load")
    except BaseException:
        with anyio.CancelScope(shield=True):
            await vmm.kill()
        raise
    is_resumed = at_once is not None or (with_delta is not None and resume)
    return Loaded(machine, vmm, running, is_resumed=is_resumed)


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
    """Resume a loaded guest, unless it is resumed already, and verify that its identity is `record`'s.

    `connections.vmm` is closed in between: no further requests go to the VMM. `resume_limit_s` is for a VMM
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
                raise VmmTimeoutError(f"{record.name}: its VMM didn't resume within {resume_limit_s:g} s")
        if timeline is not None:
            timeline.mark("resume")
        await connections.vmm.aclose()
        identity = await verify_identity(
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


def _runs(delta_fd: int, memory_bytes: int) -> list[DeltaRun]:
    with open_delta(delta_fd, memory_bytes) as delta:
        return list(delta.runs())


async def _apply(parts: Parts, running: RunningVmm) -> None:
    if parts.delta_fd is not None:
        await threads.run(apply_delta, parts.delta_fd, running.process.pid, running.ram)
