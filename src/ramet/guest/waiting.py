"""Time limits of a process that may itself be stopped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

LAST_LOOK_S: Final = 0.1
UNANSWERED_HINT: Final = "the guest hangs or is very busy: `ramet logs` prints its console"


async def last_look(wait: Callable[[], Awaitable[object]]) -> None:
    """Await `wait` for a moment longer than its limit.

    A process that was stopped (Ctrl-Z, a debugger, a laptop that slept) finds its time over as soon as it
    continues, while the answer lies unread in its socket. Its reader needs a turn before that is a time-out.
    """
    with anyio.move_on_after(LAST_LOOK_S):
        await wait()
