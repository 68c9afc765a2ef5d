"""An instance's next working directory, while it is restored or rewound, and what a killed ramet left of
one.
"""

from __future__ import annotations

from pathlib import Path

from ramet.engine.context import Context
from ramet.host import processes, threads
from ramet.host.files import exchange, remove_tree
from ramet.model.record import Record


async def settle_replacement(context: Context, record: Record) -> None:
    """What a killed ramet left of a restore or a rewind: finished when the row names the new VMM, else
    undone.

    The caller holds the instance's lock.
    """
    own, staged = context.directory(record), context.home.staged(record.id)
    entered = record.pending.staged if record.pending is not None else None
    if entered is not None and _is(staged, entered):
        await threads.run(exchange, staged, own)
    running = processes.spawned_below(own.parent, staged.parent)
    for process in [*running.get(own, ()), *running.get(staged, ())]:
        if record.vmm is None or not processes.is_same(record.vmm.process, process):
            await processes.kill(process)
    await threads.run(remove_tree, staged)


def _is(directory: Path, inode: int) -> bool:
    """Whether that is the directory, whatever it was called before. Its VMM may have died with its ramet."""
    try:
        return directory.stat().st_ino == inode
    except FileNotFoundError:
        return False
