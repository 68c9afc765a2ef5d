"""A new instance as a fork of a boot snapshot, which is made first if there is none.

The first instance of a shape is booted, captured before its main process, and its VMM ended; then it is
restored from the capture, as all later ones are. So every instance runs on a mem-file that the others share.
If the capture fails, the booted guest runs on, and its record says why.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import msgspec

from ramet.engine.agent.identity import verify_identity
from ramet.engine.boot_snapshots import cache
from ramet.engine.boot_snapshots.key import key_of
from ramet.engine.capture.capture import capture
from ramet.engine.capture.publish import drop_unpublished
from ramet.engine.context import Context
from ramet.engine.drivers import Choice
from ramet.engine.lifecycle import boot
from ramet.engine.lifecycle.boot import Wanted
from ramet.engine.lifecycle.jobs import resume_guest
from ramet.engine.lifecycle.removal import destroy
from ramet.engine.manifest import require_restorable
from ramet.engine.origin import require_parts
from ramet.engine.restore.connections import connections
from ramet.engine.restore.load import load, resume_and_verify, take_in_thread
from ramet.engine.restore.parts import ForkOptions, is_quick
from ramet.errors import (
    DamagedError,
    FilesystemError,
    GuestError,
    LimitReachedError,
    LockBusyError,
    NotFoundError,
    RametError,
    UnavailableError,
    VmmError,
    WrongStateError,
)
from ramet.model.boot import Boot
from ramet.model.lifecycle import Move, State
from ramet.model.record import Record
from ramet.progress import report
from ramet.system import liveness, processes, threads
from ramet.system.files import remove_tree

GENERATION = 2**32 - 1
"""The generation of the guest in a boot snapshot: another than that of any instance, whose first is 1."""
_CANT_BE_USED = (DamagedError, NotFoundError, LockBusyError, UnavailableError, VmmError, GuestError)
_CANT_BE_MADE = (DamagedError, FilesystemError, LockBusyError, UnavailableError, VmmError, WrongStateError)


async def make(context: Context, wanted: Wanted, choice: Choice, *, cold: bool = False) -> Record:
    """Make an instance from the boot snapshot of its shape, which is made first if there is none.

    It boots where there can be none, and with `cold`. On a failure nothing of it is left (`boot.Make`).
    """
    record = boot.reserve(context, wanted, choice, boot.machine_of(wanted, choice))
    try:
        how = boot.COLD if cold else _why_cold(context)
        if how is not None:
            launched = await boot.launch_new(context, record, wanted, choice)
            return await boot.begin(context, launched, Move.BOOT, how)
        return await _fork_or_boot(context, record, wanted, choice)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await destroy(context, record)
        raise


def _why_cold(context: Context) -> Boot | None:
    """Return why this home has no boot snapshots; None if it may have some."""
    home = context.home
    if cache.chosen_limit_bytes() == 0:
        return Boot(how="cold", detail="RAMET_BOOT_SNAPSHOTS is 0")
    place = home.boot_snapshots if home.boot_snapshots.exists() else home.root
    if place.stat().st_dev != home.instances.stat().st_dev:
        reason = f"{home.instances} is on another filesystem than {home.boot_snapshots}"
        return Boot(how="fallback", detail=reason)
    return None


async def _fork_or_boot(context: Context, record: Record, wanted: Wanted, choice: Choice) -> Record:
    key = await key_of(choice, record.machine, wanted.image)
    damage = ""
    try:
        return await _begin_from(context, record, choice, key, "a fork of the boot snapshot")
    except _Unusable as error:
        damage = error.reason
    waiting = partial(report, "waiting for another process that boots the same guest")
    async with cache.being_made(context.home, key, waiting=waiting):
        if not damage:
            try:  # of the process that was quicker
                return await _begin_from(context, record, choice, key, "a fork of the boot snapshot")
            except _Unusable as error:
                damage = error.reason
        report("first run of this shape: booting")
        launched = await boot.launch_new(context, record, wanted, choice, generation=GENERATION)
        why_not = await _keep(context, launched, key)
        if why_not is not None:
            reason = f"its boot snapshot couldn't be made: {why_not}"
            return await boot.begin(context, launched, Move.BOOT, Boot(how="fallback", detail=reason))
        how = f"booted anew, since {damage}" if damage else "the first run of this shape: booted"
        try:
            made = await _begin_from(
                context, record, choice, key, f"{how}, and forked from its boot snapshot"
            )
        except _Unusable as error:  # the next run finds the same, and makes it anew
            launched = await boot.launch_new(context, record, wanted, choice)
            fallback = Boot(how="fallback", detail=f"its boot snapshot was made, and {error.reason}")
            return await boot.begin(context, launched, Move.BOOT, fallback)
    await cache.keep_within_limit(context, keep=key)
    return made


class _Unusable(Exception):
    """There is no boot snapshot that can be used: `reason`, empty if there is none at all."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


async def _begin_from(context: Context, record: Record, choice: Choice, key: str, reason: str) -> Record:
    """Restore the instance's guest from a boot snapshot, and start its main process.

    Raises `_Unusable`; nothing of the instance but its record is left then.
    """
    try:
        launched = await _restore(context, record, choice, key)
    except _CANT_BE_USED as error:
        if isinstance(error, LimitReachedError):
            raise  # the machine's, which a boot would meet, too
        is_missing = isinstance(error, NotFoundError)
        with anyio.CancelScope(shield=True):
            await threads.run(remove_tree, context.directory(record))
        raise _Unusable("" if is_missing else f"it couldn't be used: {error.message}") from error
    return await boot.begin(context, launched, Move.BOOT, Boot(how="snapshot", detail=reason, key=key))


async def _restore(context: Context, record: Record, choice: Choice, key: str) -> Record:
    """Restore an instance's guest. Returns its record with the VMM, as `boot.launch` does.

    Raises what restoring raises; a directory may be left then, but no VMM.
    """
    driver, directory, options = choice.driver, context.directory(record), ForkOptions()
    async with cache.in_use(context, key) as origin:
        await require_parts(origin)
        await require_restorable(origin.manifest, driver, name=origin.title)
        quick = is_quick(origin, driver, context.home.instances, options, 1)
        parts = await take_in_thread(origin, driver, directory, options, is_quick=quick)
        async with connections() as opened:
            loaded = await load(driver, directory, parts, opened, resume=True)
            living = await resume_and_verify(context, record, directory, loaded, opened)
    return msgspec.structs.replace(living.record, vmm=living.running)


async def _keep(context: Context, launched: Record, key: str) -> str | None:
    """Make the boot snapshot of a guest that has booted; its VMM is ended, and its directory gone.

    Returns the reason if that can't be done: then the guest runs, with the identity of its instance.
    """
    assert launched.vmm is not None
    directory = context.directory(launched)
    running = msgspec.structs.replace(launched, state=State.RUNNING)
    try:
        async with context.lifecycle(launched) as lock:
            context.locks[launched.id] = lock
            try:
                captured = await capture(context, running, directory, goes_on=False)
            finally:
                del context.locks[launched.id]
    except _CANT_BE_MADE as error:
        if liveness.is_dead(launched.vmm.process):
            raise
        await _go_on(context, launched, directory)
        return error.message
    with anyio.CancelScope(shield=True):
        await processes.kill(launched.vmm.process)
    await threads.run(cache.publish, context.home, directory, captured.manifest, key)
    return None


async def _go_on(context: Context, launched: Record, directory: Path) -> None:
    """Let a guest run on that couldn't be captured. Raises `VmmError`, `GuestError`."""
    assert launched.vmm is not None
    try:
        await resume_guest(context, launched, context.vmm(launched))
        await verify_identity(context, launched, launched.vmm.process, limit_s=boot.READY_LIMIT_S)
    except RametError:
        with anyio.CancelScope(shield=True):
            await processes.kill(launched.vmm.process)
        raise
    finally:
        drop_unpublished(directory, launched.vmm)
