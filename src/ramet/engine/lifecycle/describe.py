"""Describe instances: the shapes that `ps`, `inspect` and `stats` show, and their use of the host (I6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec

from ramet.engine import limits
from ramet.engine.agent.root import ask_for_root
from ramet.engine.agent.session import agent_of
from ramet.engine.context import Context
from ramet.engine.lifecycle.state import require_seen, why_unseen
from ramet.engine.lifecycle.watch import refresh
from ramet.engine.maintenance.memory_jobs import compression_of
from ramet.engine.manifest import read_manifest
from ramet.engine.vmm import disk_errors
from ramet.errors import RametError, VmmError, WrongStateError
from ramet.memory.accounting import mapping_use, smaps_rollup
from ramet.model.lifecycle import State, article, next_step
from ramet.model.record import Record, Unreadable
from ramet.model.schema import CompressionState, GuestProcess, GuestRoot, Inspection, Instance, Receipt, Usage
from ramet.paths import MEM_FILE
from ramet.system import liveness, processes
from ramet.system.files import allocated_bytes


def to_instance(context: Context, record: Record, forks: int) -> Instance:
    """Describe an instance for people and programs."""
    return Instance(**instance_fields(context, record, forks))


def unreadable_instance(context: Context, row: Unreadable) -> Instance:
    """Describe an instance whose row can't be read: its name, its directory, and the reason."""
    return Instance(
        id=row.id,
        name=row.name,
        state=State.UNREADABLE,
        driver="",
        image="",
        pid=None,
        directory=str(context.home.instance(row.id)),
        memory_bytes=0,
        cpus=0,
        parent=None,
        forks=0,
        created_at="",
        labels={},
        accelerator="",
        kernel_version="",
        generation=0,
        reason=f"its record can't be read: {row.problem}",
    )


def instance_fields(context: Context, record: Record, forks: int) -> dict[str, Any]:
    """Return the fields of `Instance`, for it and for shapes that extend it."""
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
        "image_digest": record.image_digest,
        "exit_code": record.exit_code,
        "boot": record.boot,
        "reason": record.reason or unseen,
        "seen": unseen is None,
    }


def count_forks(records: Iterable[Record]) -> Counter[str]:
    """Count the forks of each id in `records` (I6: counted when asked)."""
    return Counter(record.parent for record in records if record.parent is not None)


def is_shown(state: State, *, everything: bool) -> bool:
    """Tell whether `ps` lists an instance: stopped and failed ones only with `-a`."""
    return everything or state not in {State.STOPPED, State.FAILED}


async def inspect(context: Context, record: Record, receipt: Receipt | None) -> Inspection:
    """Describe an instance for `inspect`: the VMM and the guest are asked too.

    A part without answer is null.
    """
    record = await refresh(context, record)
    fields = instance_fields(context, record, count_forks(context.store.all())[record.id])
    directory = context.directory(record)
    status = version = processes = root = None
    if record.vmm is not None:
        try:
            status = await context.vmm(record).status()
        except VmmError as error:
            status = f"unknown: {error.message}"
        if record.state is State.PAUSED and (why := await disk_errors.named(context, record)):
            fields["reason"] = why
        if record.state is State.RUNNING:
            processes, root = await _ask_guest(context, record)
    compressed: CompressionState | None = None
    if record.state in {State.TEMPLATE, State.STANDBY}:
        with suppress(RametError):  # null is shown: its manifest can't be read, as its forks are told
            compressed = compression_of(context, directory, read_manifest(directory))
    with suppress(RametError):  # null is shown: its program isn't there any more
        version = await context.driver(record.driver).version()
    return msgspec.convert(
        {
            **fields,
            "vmm_status": status,
            "vmm_version": version,
            "compression": compressed,
            "receipt": receipt,
            "processes": processes,
            "root": root,
        },
        Inspection,
        from_attributes=True,
    )


async def _ask_guest(context: Context, record: Record) -> tuple[list[GuestProcess] | None, GuestRoot | None]:
    """Return the commands that run in a guest, and its root; None what it doesn't tell within the limit."""
    assert record.vmm is not None
    shown: list[GuestProcess] | None = None
    try:
        async with agent_of(
            context, record, record.vmm.process, timeout_s=limits.INSPECT_S, own=True
        ) as client:
            shown = [
                GuestProcess(
                    pid=process.pid,
                    argv=list(process.argv),
                    inherited=process.orphaned,
                    detached=process.detached,
                )
                for process in await client.processes(timeout_s=limits.INSPECT_S)
            ]
            return shown, None if record.main is None else await ask_for_root(client)
    except RametError:
        return shown, None  # null is what `inspect` shows then: it isn't known


def usage(context: Context, record: Record) -> Usage:
    """Measure an instance's use of the host.

    Raises `WrongStateError` when it has no VMM, `VmmError` when that has just ended, `UnseenError` when it
    can't be seen from here.
    """
    if record.vmm is None:
        raise WrongStateError(
            f"{record.name} is {article(record.state)}: it uses nothing",
            hint=next_step(record.state, record.name),
        )
    require_seen(record, to_change=False)
    pid = liveness.local_pid(record.vmm.process)
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
