"""The log of a Cloud Hypervisor: its standard error, which is appended to `vmm.log`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ramet.paths import VMM_LOG
from ramet.system import bounded_log
from ramet.text import printable

STARTED: Final = b"ramet: started\n"
"""A line of the log, at the beginning of what a VMM says there."""
_LOGGED: Final = "cloud-hypervisor: "
"""Each line of Cloud Hypervisor's logger begins so; others are its last words."""


def last_words(directory: Path) -> str:
    """Return the last errors that the VMM has logged since its start, or what else it said there."""
    lines = printable(words_since_start(directory, 4096)).splitlines()
    wrong = [line.partition(" -- ")[2] or line for line in lines if re.search(r"\b(ERROR|WARN)\b", line)]
    rest = [line for line in lines if not line.startswith(_LOGGED)]
    return " / ".join([*wrong[-3:], *([" ".join(" ".join(rest).split())] if rest else [])])[-1000:]


def words_since_start(directory: Path, most_bytes: int) -> bytes:
    """Return the end of the log of the VMM that last worked in `directory`, without its predecessors'."""
    return bounded_log.tail(directory / VMM_LOG, most_bytes).rpartition(STARTED)[2]
