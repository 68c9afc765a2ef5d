"""While a Host is open it notices when a guest of its own reboots, and starts it cold at once.

Costs one pidfd an instance.
"""

from __future__ import annotations

import anyio

from ramet.engine import execution
from ramet.engine.context import Context
from ramet.errors import NotFoundError, RametError
from ramet.host import processes
from ramet.model.lifecycle import Move, State
from ramet.model.record import Record


def watch(context: Context, record: Record) -> None:
    """Watch an instance for as long as its Host is open, or until it stops."""
    context.tasks.start_soon(_watch, context, record)


async def _watch(context: Context, record: Record) -> None:
    try:
        while record.vmm is not None:
            await processes.wait_ended(record.vmm.process)
            with anyio.CancelScope(shield=True):
                record = await execution.settle(context, record)
    except NotFoundError:
        pass  # removed
    except Exception as error:
        # It can't be started again. That is this instance's trouble and not its Host's.
        reason = f"its guest rebooted, and it couldn't be started again: {error}"
        _note_failure(context, record, reason)


def _note_failure(context: Context, record: Record, reason: str) -> None:
    try:
        context.store.change(
            record.id, lambda one: one.moved(Move.FAIL, reason=reason) if one.state is State.STOPPED else one
        )
    except RametError:
        pass  # whoever asks for it next finds out again
