"""The reason of a guest's reset, as far as its console tells.

A VMM can't tell a reboot from a crash: after a panic, after a triple fault and in a reboot the machine is
reset in the same way. A kernel that reboots because it was asked to says so just before, as its last line
(Linux, kernel/reboot.c, `kernel_restart`: at the highest level, so also when it boots with `quiet`), and so
does the probe. A reset without that line is a crash.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ramet.paths import CONSOLE_LOG
from ramet.system import bounded_log
from ramet.units import KIB

_POWER_OFF: Final = b"ramet: power off"
_LOOKED_AT_BYTES: Final = 4 * KIB
_LAST_LINES: Final = 4
# The second is said at a lower level, where there is no `quiet`; the third by who writes `b` to
# /proc/sysrq-trigger, which is the wish for a reboot too (drivers/tty/sysrq.c); the last by the probe.
_REBOOT: Final = re.compile(
    rb"reboot: Restarting system|reboot: machine restart|sysrq: Resetting|^ramet: reboot$"
)
_CRASH: Final = re.compile(rb"Kernel panic - not syncing|^probe: exception")


def announced_power_off(directory: Path, console_start: int) -> bool:
    """Tell whether the agent said that its guest powers off. The kernel may have added a line."""
    lines = _last_lines(directory, console_start)
    if lines and b"reboot: " in lines[-1]:
        lines.pop()
    return bool(lines) and lines[-1] == _POWER_OFF


def announced_reboot(directory: Path, console_start: int) -> bool:
    """Tell whether the guest said that it reboots, and didn't crash on its way."""
    for line in reversed(_last_lines(directory, console_start)):
        if _CRASH.search(line):
            return False
        if _REBOOT.search(line):
            return True
    return False


def _last_lines(directory: Path, console_start: int) -> list[bytes]:
    """Return the last lines since the VMM's start: an earlier VMM's last line is in the same file."""
    console = bounded_log.since(directory / CONSOLE_LOG, console_start, _LOOKED_AT_BYTES)
    return [line.strip() for line in console.splitlines() if line.strip()][-_LAST_LINES:]
