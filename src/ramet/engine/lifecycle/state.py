"""The actual state of an instance: its record checked against its VMM's process.

Reads files and pidfds only, so it is fit for `ps`.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

import msgspec

from ramet.drivers.interface import Ending
from ramet.engine.context import Context
from ramet.engine.vmm import disk_errors
from ramet.engine.vmm.console import last_words
from ramet.engine.vmm.main_end import main_end
from ramet.errors import RametError, UnseenError
from ramet.model.lifecycle import Move, State
from ramet.model.record import ProcessRef, Record
from ramet.system import liveness, process_ref, sockets

_ITS_VMM: Final = "its VMM"


class Actual(NamedTuple):
    """A record with its actual state. `ending` is the way its VMM ended, if that isn't recorded yet."""

    record: Record
    ending: Ending | None


def state_of(context: Context, record: Record) -> Actual:
    """Return the actual state of `record`: its VMM may have ended without anybody recording it.

    Nothing is written here either.
    """
    if record.vmm is None or not is_gone(context, record, record.vmm.process):
        return Actual(_as_its_disks_let_it(context, record), None)
    if record.vmm.process.boot_id != process_ref.boot_id():
        return Actual(record.moved(Move.FAIL, reason="the host was restarted"), Ending.DIED)
    if record.driver not in context.drivers:  # one row of another ramet's stops no listing
        reason = f"the VMM ended; this ramet has no driver {record.driver!r} to say how"
        return Actual(record.moved(Move.FAIL, reason=reason), Ending.DIED)
    ending = context.driver(record.driver).ending(
        context.directory(record), console_start=record.vmm.console_start
    )
    match ending:
        case Ending.DIED:
            reason = f"the VMM died{last_words(context, record)}"
            return Actual(record.moved(Move.FAIL, reason=reason), ending)
        case Ending.CRASHED:
            why = last_words(context, record, only_reasons=True)
            reason = f"the guest crashed{why}" if why else ending.value
            return Actual(record.moved(Move.FAIL, reason=reason), ending)
        case Ending.REBOOTED:
            reason = "the guest rebooted; it is started cold when it is next used"
            return Actual(record.moved(Move.STOP, reason=reason), ending)
        case Ending.POWERED_OFF | Ending.ASKED:
            return Actual(_powered_off(context, record, ending), ending)


def _powered_off(context: Context, record: Record, ending: Ending) -> Record:
    """Return the record of a guest that powered off, perhaps because its main process had ended."""
    end = main_end(context, record)
    if end is None:
        return record.moved(Move.STOP, reason=ending.value)
    return msgspec.structs.replace(record.moved(Move.STOP, reason=end.words), exit_code=end.exit_code)


def _as_its_disks_let_it(context: Context, record: Record) -> Record:
    """Return the record of a living instance: paused if its VMM has paused it over a disk."""
    if record.vmm is not None and record.state is State.RUNNING and disk_errors.is_stopped(context, record):
        why = disk_errors.reason(context, record)
        return record.moved(Move.PAUSE, vmm=record.vmm, reason=why)
    return record


def is_gone(context: Context, record: Record, process: ProcessRef) -> bool:
    """Tell whether the instance's VMM, `process`, is certainly dead.

    A VMM of another PID namespace can't be seen, but the socket that it has been listening on since before it
    was started is in the instance's directory: if the kernel says that nobody listens there (connect(2),
    ECONNREFUSED), the VMM has ended. Not asked while a restore or a rewind exchanges directories.
    """
    match liveness.liveness(process):
        case liveness.Liveness.ALIVE:
            return False
        case liveness.Liveness.DEAD:
            return True
        case liveness.Liveness.UNKNOWN:
            if not process_ref.is_this_boot(process) or record.pending is not None:
                return False
            return listens(context, record) is False


def listens(context: Context, record: Record) -> bool | None:
    """Tell whether a process listens on the VMM's control socket; None without a socket or an answer."""
    try:
        name = context.vmm(record).resume_steps().socket_name
        sockets.connect(context.directory(record), name).close()
    except ConnectionRefusedError:
        return False
    except BlockingIOError:
        return True  # its queue is full
    except (OSError, RametError):
        return None
    return True


def why_unseen(record: Record) -> str | None:
    """Tell why the instance's actual state can't be seen from here; None when it can.

    An unseen instance's state is the state in its record.
    """
    unseen = unseen_process(record)
    return unseen and f"{unseen[0]} can't be seen from here: {liveness.why_unseen(unseen[1])}"


def unseen_process(record: Record) -> tuple[str, ProcessRef] | None:
    """Return the process that would have to be seen and can't be, and its part in the instance."""
    return next((party for party in _involved(record) if liveness.why_unseen(party[1]) is not None), None)


def _involved(record: Record) -> list[tuple[str, ProcessRef]]:
    involved = []
    if record.vmm is not None:
        involved.append((_ITS_VMM, record.vmm.process))
    if record.pending is not None:
        involved.append((f"the process that is changing it ({record.pending.what})", record.pending.by))
    if record.state is State.CREATED and record.owner is not None:
        involved.append(("the process that is making it", record.owner))
    return involved


def require_seen(record: Record, *, to_change: bool = True) -> None:
    """Raise `UnseenError` when the instance's VMM can't be seen or reached from here.

    With `to_change`, also when the process that is changing the instance can't.
    """
    for what, process in _involved(record):
        if what != _ITS_VMM and not to_change:
            continue
        try:
            pidfd = liveness.open_pidfd(process)
        except UnseenError as error:
            hint = error.hint
            if not process_ref.is_this_boot(process):
                hint = (
                    f"{hint}; if that is gone for good, `ramet rm --lost {record.name}` removes what it left"
                )
            why = liveness.why_out_of_reach(process)
            raise UnseenError(
                f"{record.name} is left alone: {what} can't be seen from here: {why}", hint=hint
            ) from error
        if pidfd is not None:
            os.close(pidfd)
