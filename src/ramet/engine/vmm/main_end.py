"""The end of a guest's main process, as its agent says it on the console before the guest powers off.

The guest's root may write such a line too: it decides its own exit code in any case.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ramet.engine.context import Context
from ramet.model.record import Record
from ramet.paths import CONSOLE_LOG
from ramet.system import bounded_log
from ramet.units import KIB

_LOOKED_AT_BYTES: Final = 64 * KIB
_ENDED: Final = re.compile(rb"^ramet: the main process ended: (exit|signal) (\d{1,3})\s*$", re.MULTILINE)
"""The agent's line (`guest/agent/exec/main_process.c`)."""


_FULL: Final = re.compile(rb"^ramet: (the guest's root is full, [\x20-\x7e]{1,200}?)\s*$", re.MULTILINE)
"""The agent's line before that (`guest/agent/init/root.c`)."""


class MainEnd(NamedTuple):
    """The end of a main process: its exit code, as a shell has it, and in words."""

    exit_code: int
    words: str


def main_end(context: Context, record: Record) -> MainEnd | None:
    """Return how the main process ended since the VMM was started; None if the console doesn't say so."""
    if record.main is None or record.vmm is None:
        return None
    log = context.directory(record) / CONSOLE_LOG
    try:
        console = bounded_log.since(log, record.vmm.console_start, _LOOKED_AT_BYTES)
    except OSError:
        return None
    ends = _ENDED.findall(console)
    if not ends:
        return None
    kind, number = ends[-1][0], int(ends[-1][1])
    full = _FULL.findall(console)
    cause = f"; {full[-1].decode()}" if full and (number or kind == b"signal") else ""
    if kind == b"signal":
        return MainEnd(128 + number, f"its main process was ended by signal {number}{cause}")
    return MainEnd(number, f"its main process ended with exit code {number}{cause}")
