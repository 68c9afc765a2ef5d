"""While a Host is open it notices when a guest of its own reboots, and starts it cold at once.

Costs one pidfd an instance.
"""

from __future__ import annotations

import anyio

from ramet.engine import execution
from ramet.engine.context import Context
from ramet.errors import RametError
from ramet.host import processes
from ramet.model.record import Record


def watch(context: Context, record: Record) -> None:
    """Watch an instance for as long as its Host is open, or until it stops."""
    context.tasks.start_soon(_watch, context, record)


async def _watch(context: Context, record: Record) -> None:
    try:
        while record.vmm is not None:
            await processes.wait_ended(record.vmm.process)
            with anyio.CancelScope(shield=True):
                record = await execution.settle(context, context.store.get(record.id))
    except RametError:
        pass  # removed, or it can't be started: whoever asks for it next is told
