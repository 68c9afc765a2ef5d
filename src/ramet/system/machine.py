"""The machine and its boots.

A process that was started under another boot id is dead if that was an earlier boot of this machine. If it is
another machine's boot, or that of a container with its own boot id, its processes may live.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, NamedTuple

from ramet.system.process_ref import boot_id, time_offset_ns

_SECOND_NS: Final = 1_000_000_000
_MACHINE_ID: Final = Path("/etc/machine-id")
_JITTER_S: Final = 2
"""The moment of the boot is the clock's time less the time since: it moves a little as the clock is set."""


class Boot(NamedTuple):
    """A boot as a system saw it: the system's machine id, and the boot's beginning in seconds of Unix time.

    Several systems may see a boot, a host and its containers.
    """

    boot_id: str
    machine_id: str
    booted_at_s: int


def machine_id() -> str:
    """Return this system's machine-id(5); empty if it has none, as in many containers."""
    try:
        text = _MACHINE_ID.read_text().strip()
    except (OSError, ValueError):
        return ""
    return "" if text == "uninitialized" else text


def this_boot() -> Boot:
    """Return the present boot. Raises `UnavailableError` without /proc."""
    since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time_offset_ns()
    return Boot(boot_id(), machine_id(), int(time.time() - since_ns / _SECOND_NS))


def past_boots(known: list[Boot]) -> set[str]:
    """Return the boots of `known` that were this machine's, and over before the present boot began.

    Another boot id that was seen since, with the same machine id, is a container's or a cloned machine's.
    """
    present = this_boot()
    ours = {present.machine_id} | {boot.machine_id for boot in known if boot.boot_id == present.boot_id}
    latest: dict[str, int] = {}
    for boot in known:
        latest[boot.boot_id] = max(boot.booted_at_s, latest.get(boot.boot_id, 0))
    return {
        boot.boot_id
        for boot in known
        if boot.machine_id in ours and latest[boot.boot_id] < present.booted_at_s - _JITTER_S
    } - {present.boot_id}
