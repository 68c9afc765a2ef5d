"""The machine and its boots: which of them were this one's.

A process that was started under another boot id is dead if that was an earlier boot of this machine. If it is
another machine's boot, or a container's with a boot id of its own, its processes may live.
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
    """One boot as it was seen: by a system with that machine id, and when it began, in seconds of Unix time.

    One boot may be seen by several, a host and its containers.
    """

    boot_id: str
    machine_id: str
    booted_at_s: int


def machine_id() -> str:
    """This system's machine-id(5); empty where it has none, as in many containers."""
    try:
        text = _MACHINE_ID.read_text().strip()
    except (OSError, ValueError):
        return ""
    return "" if text == "uninitialized" else text


def this_boot() -> Boot:
    """The present one. Raises `UnavailableError` without /proc."""
    since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time_offset_ns()
    return Boot(boot_id(), machine_id(), int(time.time() - since_ns / _SECOND_NS))


def past_boots(known: list[Boot]) -> set[str]:
    """Those of `known` that were boots of this very machine, and over before the present one began.

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
