"""What a home holds that belongs to another machine or another PID namespace, for `doctor`.

It is left alone: nothing of it is undone, ended or removed from here.
"""

from __future__ import annotations

from collections import Counter

from ramet.engine import pool
from ramet.engine.observe import unseen_process
from ramet.host import processes
from ramet.model.record import ProcessRef
from ramet.paths import Home
from ramet.store.records import Store


def left_alone(home: Home) -> list[str]:
    """Lines that say how much of what is left alone, and why; none when all can be seen from here.

    Raises `StoreError`, `UnavailableError` when the home's database can't be read.
    """
    if not home.database.exists():
        return []
    store = Store(home.database)
    try:
        involved: list[tuple[str, ProcessRef | None]] = []
        for record in store.all():
            unseen = unseen_process(record)
            involved.append(("instance", unseen[1] if unseen is not None else record.owner))
        involved += [("snapshot being made", row.maker) for row in store.snapshots.all()]
    finally:
        store.close()
    involved += [("warm VMM", entry.holder) for entry in pool.entries(pool.names(home))]
    counted: Counter[tuple[str, str]] = Counter()
    for what, process in involved:
        if process is not None and (why := processes.why_unseen(process)) is not None:
            counted[why, what] += 1
    return [_line(count, what, why) for (why, what), count in sorted(counted.items())]


def _line(count: int, what: str, why: str) -> str:
    kind, _, rest = what.partition(" ")
    several = "s" if count != 1 else ""
    noun = f"{what}{several}" if kind == "warm" else f"{kind}{several}{' ' if rest else ''}{rest}"
    return f"{count} {noun}: {why}"
