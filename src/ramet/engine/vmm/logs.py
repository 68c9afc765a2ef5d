"""The logs of instances, cut when a home is opened and every 20 s while a Host is open.

The kernel limits the size of each log (`drivers.log_limits`). A guest of some VMMs hangs at that limit, so
their limit is far above the size at which a log is cut here.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio

from ramet.paths import CONSOLE_LOG, EVENTS_LOG, VMM_LOG, Home
from ramet.system import bounded_log, threads

EVERY_S: Final = 20.0
"""A serial console writes a few MB in that time."""
_LOGS: Final = (CONSOLE_LOG, VMM_LOG, EVENTS_LOG)


def trim(directory: Path) -> None:
    """Cut the logs of the instance in `directory` that have grown. Raises `OSError`."""
    for log in _LOGS:
        bounded_log.trim(directory / log)


async def keep_trimmed(home: Home) -> None:
    """Cut the logs of all instances in a home every `EVERY_S`, until cancelled. A Host's task runs this."""
    while True:
        await anyio.sleep(EVERY_S)
        await threads.run(_trim_all, home)


def _trim_all(home: Home) -> None:
    with suppress(OSError):  # a home that has been removed has no logs
        for directory in home.instances.iterdir():
            for log in _LOGS:
                # A full disk, and what a VMM put in a log's place: the next round tries again.
                with suppress(OSError):
                    bounded_log.trim(directory / log)
