"""The disks of a QEMU: chains of qcow2 files, put under an overlay during a pause, shortened while it runs.

Every layer is a separate node, named after its file (`disk-3.qcow2` is `disk-3`, over `disk-3-file`), so that
after any number of captures any ramet process knows the names from the record alone. Nothing here writes to a
file that lies under another one (I1): chains are shortened by `block-stream`, which copies upwards into the
active file, never by `block-commit`.

Sources: QEMU's QMP reference for `blockdev-add`, `blockdev-snapshot`, `transaction`, `block-stream`,
`job-cancel`, `block_resize`; docs/interop/live-block-operations.rst.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import anyio

from ramet.drivers.qemu.monitor import Monitor
from ramet.errors import VmmError, VmmTimeoutError
from ramet.model.record import Base, Disk

_JOB_POLL_S: Final = 0.01
_JOB_LIMIT_S: Final = 20.0
_CANCELLED: Final = "canceled"  # the text of ECANCELED
_GOES: Final = {"created", "running", "paused", "ready", "standby", "waiting", "pending"}


def node_name(file: str) -> str:
    """Return the name of the node that has the layer `file`."""
    return Path(file).stem


def nodes(disk: Disk) -> list[dict[str, object]]:
    """Return the nodes of a whole chain for `blockdev-add`, the lowest first: only the last is written."""
    made: list[dict[str, object]] = []
    below: str | None = None
    for file in disk.backing:
        made += _layer(file, disk, below=below, read_only=True)
        below = node_name(file)
    return [*made, *_layer(disk.file, disk, below=below, read_only=False)]


def read_only_nodes(base: Base) -> list[dict[str, object]]:
    """Return the nodes of a device that many VMMs read at once and none writes, for `blockdev-add`."""
    name = node_name(base.file)
    protocol = {"driver": "file", "node-name": f"{name}-file", "filename": base.file, "read-only": True}
    return [protocol, {"driver": "raw", "node-name": name, "file": f"{name}-file", "read-only": True}]


def _layer(file: str, disk: Disk, *, below: str | None, read_only: bool) -> list[dict[str, object]]:
    name = node_name(file)
    # auto-read-only: once the layer above takes the writes, the file is opened anew, for reading alone.
    mode: dict[str, object] = {"read-only": True} if read_only else {"auto-read-only": True}
    protocol: dict[str, object] = {"driver": "file", "node-name": f"{name}-file", "filename": file, **mode}
    layer: dict[str, object] = {"driver": disk.format, "node-name": name, "file": f"{name}-file"}
    if read_only:
        layer["read-only"] = True
    if disk.format == "qcow2":
        layer["backing"] = below  # said always: else what the file's header names would be opened
    return [protocol, layer]


async def prepare_overlays(monitor: Monitor, pairs: Sequence[tuple[Disk, Disk]]) -> None:
    """Have QEMU open the overlays (`FreezesDisks.prepare_overlays`)."""
    for before, _ in pairs:
        await stop_shortening(monitor, before)
    known = await _known_nodes(monitor) if pairs else set()
    made: list[tuple[Disk, Disk]] = []
    try:
        for before, after in pairs:
            made.append((before, after))
            # Of an earlier capture that went no further. In use, it is refused.
            await _delete(monitor, node_name(after.file), known)
            for node in _layer(after.file, after, below=None, read_only=False):
                await monitor.execute("blockdev-add", **node)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await drop_overlays(monitor, made)
        raise


async def switch_overlays(monitor: Monitor, pairs: Sequence[tuple[Disk, Disk]]) -> None:
    """Switch writes to the overlays (`FreezesDisks.switch_overlays`)."""
    if not pairs:
        return
    actions = [
        {
            "type": "blockdev-snapshot",
            "data": {"node": node_name(before.file), "overlay": node_name(after.file)},
        }
        for before, after in pairs
    ]
    await monitor.execute("transaction", actions=actions)


async def drop_overlays(monitor: Monitor, pairs: Sequence[tuple[Disk, Disk]]) -> None:
    """Have QEMU close unused overlays (`FreezesDisks.drop_overlays`)."""
    if not pairs:
        return
    known = await _known_nodes(monitor)
    for _, after in pairs:
        await _delete(monitor, node_name(after.file), known)


async def grow_disk(monitor: Monitor, disk: Disk) -> None:
    """Make a disk larger (`ResizesDisks.grow_disk`). A chain that is being shortened stays as it was."""
    await stop_shortening(monitor, disk)
    resize: dict[str, object] = {"node-name": node_name(disk.file), "size": disk.size_bytes}
    await monitor.execute("block_resize", **resize)


async def active_files(monitor: Monitor) -> dict[str, str]:
    """Return the file that each disk writes to (`FreezesDisks.active_files`)."""
    active: dict[str, str] = {}
    for device in await monitor.execute("query-block"):
        if device.get("inserted") is not None:
            active[_disk_of(device)] = f"{device['inserted']['node-name']}.{device['inserted']['drv']}"
    return active


async def disk_errors(monitor: Monitor) -> dict[str, str]:
    """Return the disks' last errors (`NamesDiskErrors.disk_errors`)."""
    return {
        _disk_of(device): str(device["io-status"])
        for device in await monitor.execute("query-block")
        if device.get("io-status", "ok") != "ok"
    }


def _disk_of(device: dict[str, Any]) -> str:
    return str(device["qdev"]).removeprefix("/machine/peripheral/").partition("/")[0]


def _job(disk: Disk) -> str:
    return f"shorten-{disk.name}"


async def start_shortening(monitor: Monitor, disk: Disk, *, speed_bytes_per_s: int) -> None:
    """Begin to copy all layers but the lowest into the active one."""
    base = disk.backing[0]
    arguments: dict[str, object] = {
        "job-id": _job(disk),
        "device": node_name(disk.file),
        "base-node": node_name(base),
        "backing-file": base,  # what the header will say: beside it, wherever the directory is
        "auto-dismiss": False,
        "speed": speed_bytes_per_s,
    }
    await monitor.execute("block-stream", **arguments)


async def shortened(monitor: Monitor, disk: Disk) -> bool | None:
    """Tell whether the chain was shortened: None while the job runs, False when the job was cancelled.

    Raises `VmmError` when the job failed; the chain is unchanged then.
    """
    job = await _find_job(monitor, disk)
    if job is None:
        # Somebody else has ended it: a success took the layers away, a cancellation didn't.
        return node_name(disk.backing[-1]) not in await _known_nodes(monitor)
    if job["status"] != "concluded":
        return None
    return await _conclude(monitor, disk, job)


async def stop_shortening(monitor: Monitor, disk: Disk) -> None:
    """Cancel the shortening of a disk (`ShortensDisks.stop_shortening`)."""
    job = await _find_job(monitor, disk)
    if job is not None and job["status"] in _GOES:
        await monitor.execute("job-cancel", id=_job(disk))
    with anyio.move_on_after(_JOB_LIMIT_S):
        while job is not None:
            if job["status"] == "concluded":
                try:
                    await _conclude(monitor, disk, job)
                except VmmError:
                    pass  # it failed: there is nothing to stop
                return
            await anyio.sleep(_JOB_POLL_S)
            job = await _find_job(monitor, disk)
        return
    raise VmmTimeoutError(f"QEMU doesn't stop shortening the disk `{disk.name}`")


async def _conclude(monitor: Monitor, disk: Disk, job: dict[str, Any]) -> bool:
    """Dismiss a job that has ended; the layers that nothing lies over any more are closed."""
    await monitor.execute("job-dismiss", id=_job(disk))
    if error := job.get("error"):
        if _CANCELLED in str(error):
            return False
        raise VmmError(f"QEMU couldn't shorten the disk `{disk.name}`: {error}")
    known = await _known_nodes(monitor)
    for file in reversed(disk.backing[1:]):
        await _delete(monitor, node_name(file), known)
    return True


async def _find_job(monitor: Monitor, disk: Disk) -> dict[str, Any] | None:
    jobs: list[dict[str, Any]] = await monitor.execute("query-jobs")
    return next((job for job in jobs if job["id"] == _job(disk)), None)


async def _known_nodes(monitor: Monitor) -> set[str]:
    nodes = await monitor.execute("query-named-block-nodes", flat=True)
    return {str(node["node-name"]) for node in nodes}


async def _delete(monitor: Monitor, name: str, known: set[str]) -> None:
    for node in (name, f"{name}-file"):
        if node in known:
            await monitor.execute("blockdev-del", **{"node-name": node})
            known.discard(node)
