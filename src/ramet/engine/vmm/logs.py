"""The logs of instances are cut while a Host is open, however long that is.

A limit of the kernel's ends the growth of most (`drivers.log_limits`), and opening a home cuts them. A VMM
whose guest would hang at that limit has one that is far away, so somebody has to cut its logs before.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio

from ramet.paths import CONSOLE_LOG, ERRORS_LOG, EVENTS_LOG, VMM_LOG, Home
from ramet.system import bounded_log, threads

EVERY_S: Final = 20.0
"""A serial console writes a few MB in that time."""
_LOGS: Final = (CONSOLE_LOG, VMM_LOG, EVENTS_LOG, ERRORS_LOG)


def trim(directory: Path) -> None:
    """Cut the logs of the instance in `directory` that have grown. Raises `OSError`."""
    for log in _LOGS:
        bounded_log.trim(directory / log)


async def keep_trimmed(home: Home) -> None:
    """Cut the logs of all instances in a home now and then, until cancelled. For a task of a Host's."""
    while True:
        await anyio.sleep(EVERY_S)
        await threads.run(_trim_all, home)


def _trim_all(home: Home) -> None:
    with suppress(OSError):  # a home that has been removed has no logs
        for directory in home.instances.iterdir():
            with suppress(OSError):  # a full disk: the next time
                trim(directory)
