"""An instance's next working directory, while it is restored or rewound, and what a killed ramet left of
one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio.to_thread

from ramet.engine.context import Context
from ramet.host import processes
from ramet.host.files import exchange, filesystem_errors
from ramet.model.record import ProcessRef, Record


def remove_staged(staged: Path) -> None:
    """Remove a staged directory, if it is there. Raises `FilesystemError`."""
    with filesystem_errors("remove", staged):
        if staged.exists():
            shutil.rmtree(staged)


async def settle_replacement(context: Context, record: Record) -> None:
    """What a killed ramet left of a restore or a rewind: finished when the row names the new VMM, else
    undone.

    The caller holds the instance's lock.
    """
    own, staged = context.directory(record), context.home.staged(record.id)
    if staged.exists() and record.vmm is not None and _works_in(record.vmm.process, staged):
        await anyio.to_thread.run_sync(exchange, staged, own)
    for process in processes.spawned_in(own):
        if record.vmm is None or record.vmm.process != process:
            await processes.kill(process)
    await anyio.to_thread.run_sync(remove_staged, staged)


def _works_in(process: ProcessRef, directory: Path) -> bool:
    """Whether that is the process's working directory, whatever the directory is called by now."""
    try:
        return Path(f"/proc/{process.pid}/cwd").samefile(directory)
    except OSError:
        return False
