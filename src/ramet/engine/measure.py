"""What instances use of the host, measured when asked (I6)."""

from __future__ import annotations

from ramet.engine.context import Context
from ramet.engine.observe import require_seen
from ramet.errors import WrongStateError
from ramet.host import processes
from ramet.host.files import allocated_bytes
from ramet.memory.accounting import mapping_use, smaps_rollup
from ramet.model.lifecycle import article, next_step
from ramet.model.record import Record
from ramet.model.shapes import Usage
from ramet.paths import MEM_FILE


def usage(context: Context, record: Record) -> Usage:
    """One instance's use.

    Raises `WrongStateError` when it has no VMM, `VmmError` when that has just ended, `UnseenError` when it
    can't be seen from here.
    """
    if record.vmm is None:
        raise WrongStateError(
            f"{record.name} is {article(record.state)}: it uses nothing",
            hint=next_step(record.state, record.name),
        )
    require_seen(record, to_change=False)
    pid = processes.local_pid(record.vmm.process)
    mem = context.directory(record) / MEM_FILE
    whole = smaps_rollup(pid)
    guest = mapping_use(pid, record.vmm.ram)
    return Usage(
        id=record.id,
        name=record.name,
        cpu_seconds=processes.cpu_seconds(record.vmm.process),
        rss_bytes=whole.rss_bytes,
        pss_bytes=whole.pss_bytes,
        private_dirty_bytes=whole.private_dirty_bytes,
        guest_private_bytes=guest.private_dirty_bytes,
        mem_file_allocated_bytes=allocated_bytes(mem) if record.vmm.mem_inode else 0,
        mem_file_links=mem.stat().st_nlink if record.vmm.mem_inode else 0,
    )
