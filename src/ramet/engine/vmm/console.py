"""A guest's last words: the lines of its console that say why something went wrong."""

from __future__ import annotations

import re
from typing import Final

from ramet.engine.context import Context
from ramet.model.record import Record
from ramet.paths import CONSOLE_LOG
from ramet.system import bounded_log
from ramet.text import printable
from ramet.units import KIB

_LOOKED_AT_BYTES: Final = 64 * KIB  # an oops with its registers takes 5, a list of processes more
_LINES: Final = 3
_SHOWN: Final = 400
_STAMP: Final = re.compile(
    r"^.*?\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ?"
)  # with text before it that had no line end
# In the order of what matters: Linux (kernel/panic.c, mm/oom_kill.c, lib/bug.c, arch/x86/mm/fault.c and
# kernel/traps.c, kernel/reboot.c, drivers/tty/sysrq.c), and what ramet's agent and probe say themselves.
_REASONS: Final = tuple(
    map(
        re.compile,
        (
            r"Kernel panic - not syncing",
            r"Out of memory|oom-kill|no killable process",
            r"BUG: |Oops: |general protection fault|Unable to handle kernel|kernel BUG at|double fault",
            r"^(?:Booting from ROM\.\.)?ramet: (?!power off|reboot)|^probe: exception|reboot: |sysrq: ",
        ),
    )
)


def last_words(context: Context, record: Record, *, only_reasons: bool = False) -> str:
    """Return at most three lines of the guest's console since its VMM's start, for an error message.

    Lines with a reason are chosen (a panic, memory that ran out), else the last lines; with `only_reasons`
    none.
    """
    start = record.vmm.console_start if record.vmm is not None else 0
    path = context.directory(record) / CONSOLE_LOG
    try:
        text = printable(bounded_log.since(path, start, _LOOKED_AT_BYTES))
    except OSError:
        return ""  # the message is about something else, and is better without an end than not there
    lines = [_STAMP.sub("", line.strip()) for line in text.splitlines() if line.strip()]
    if why := reasons(lines):
        return "; its console says: " + " / ".join(why)[:_SHOWN]
    if only_reasons or not lines:
        return ""
    return "; its console ends with: " + " / ".join(lines[-_LINES:])[-_SHOWN:]


def reasons(lines: list[str]) -> list[str]:
    """Return the lines that give reasons, in their order: the weightiest three, of equal ones the last."""
    ranked = [
        (weight, -place, line)
        for place, line in enumerate(lines)
        if not line.startswith("---[")  # a panic's own echo
        for weight, pattern in enumerate(_REASONS)
        if pattern.search(line)
    ]
    chosen: dict[str, int] = {}
    for _, place, line in sorted(ranked):
        if line not in chosen and len(chosen) < _LINES:
            chosen[line] = place
    return sorted(chosen, key=lambda line: -chosen[line])
