"""What an instance is in fact: its record held against its VMM's process.

Reads files and pidfds only, so it is fit for `ps`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from ramet.drivers.api import Ending
from ramet.engine.context import Context
from ramet.errors import UnseenError
from ramet.host import processes, rings
from ramet.model.lifecycle import Move, State
from ramet.model.record import ProcessRef, Record
from ramet.model.shapes import Instance
from ramet.paths import CONSOLE_LOG


class Observation(NamedTuple):
    """A record as it ought to be. `ending` is how its VMM went, when it has gone unnoticed so far."""

    record: Record
    ending: Ending | None


def observe(context: Context, record: Record) -> Observation:
    """`record`, put right when its VMM has ended without anybody writing it down.

    Nothing is written here either.
    """
    if record.vmm is None or not processes.is_dead(record.vmm.process):
        return Observation(record, None)
    if record.vmm.process.boot_id != processes.boot_id():
        return Observation(record.moved(Move.FAIL, reason="the host was restarted"), Ending.DIED)
    ending = context.driver(record.driver).ending(context.directory(record))
    match ending:
        case Ending.DIED:
            last = _last_line(context, record)
            return Observation(record.moved(Move.FAIL, reason=f"the VMM died{last}"), ending)
        case Ending.REBOOTED:
            reason = "the guest rebooted; it is started cold when it is next used"
            return Observation(record.moved(Move.STOP, reason=reason), ending)
        case Ending.POWERED_OFF | Ending.ASKED:
            return Observation(record.moved(Move.STOP, reason=ending.value), ending)


def _last_line(context: Context, record: Record) -> str:
    console = rings.printable(rings.tail(context.directory(record) / CONSOLE_LOG, 4096)).split("\n")
    said = [line.strip() for line in console if line.strip()]
    return f"; its console ends with: {said[-1][:200]}" if said else ""


def to_instance(context: Context, record: Record, forks: int) -> Instance:
    """The shape that people and programs are shown."""
    return Instance(**instance_fields(context, record, forks))


def instance_fields(context: Context, record: Record, forks: int) -> dict[str, Any]:
    """The fields of `Instance`, for it and for shapes that extend it."""
    unseen = why_unseen(record)
    return {
        "id": record.id,
        "name": record.name,
        "state": record.state,
        "driver": record.driver,
        "image": record.image,
        "pid": record.vmm.process.pid if record.vmm else None,
        "directory": str(context.directory(record)),
        "memory_bytes": record.machine.memory_bytes,
        "cpus": record.machine.cpus,
        "parent": record.parent,
        "snapshot": record.snapshot,
        "forks": forks,
        "created_at": record.created_at,
        "labels": record.labels,
        "accelerator": record.machine.accelerator,
        "kernel_version": record.kernel_version,
        "generation": record.generation,
        "reason": record.reason or unseen,
        "seen": unseen is None,
    }


def why_unseen(record: Record) -> str | None:
    """Why it can't be told from here what the instance does, or None when it can be: its state is what its
    record says then.
    """
    unseen = _unseen(record)
    return unseen and f"{unseen[0]} can't be seen from here: {processes.why_unseen(unseen[1])}"


def _unseen(record: Record) -> tuple[str, ProcessRef] | None:
    """The process that would have to be seen and can't be, and what it is to the instance."""
    involved = []
    if record.vmm is not None:
        involved.append(("its VMM", record.vmm.process))
    if record.pending is not None:
        involved.append((f"the process that is changing it ({record.pending.what})", record.pending.by))
    if record.state is State.CREATED and record.owner is not None:
        involved.append(("the process that is making it", record.owner))
    return next((one for one in involved if processes.why_unseen(one[1]) is not None), None)


def require_seen(record: Record) -> None:
    """Raise `UnseenError` when the instance can't be changed from here, because its VMM, or who is changing
    it, can't be seen.
    """
    unseen = _unseen(record)
    if unseen is not None:
        raise UnseenError(
            f"{record.name} is left alone: {why_unseen(record)}", hint=processes.where_to_look(unseen[1])
        )


def count_forks(records: Iterable[Record]) -> Counter[str]:
    """How many of `records` were forked from each id (I6: counted when asked)."""
    return Counter(record.parent for record in records if record.parent is not None)


def is_shown(state: State, *, everything: bool) -> bool:
    """Whether `ps` lists it: stopped and failed ones only with `-a`."""
    return everything or state not in {State.STOPPED, State.FAILED}
