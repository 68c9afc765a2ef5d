"""Forks that can't start because the kernel has no thread left for their VMM.

KVM makes its own thread when a guest first runs, and that counts, too. If the thread can't be made,
Firecracker tries for ever: nothing fails, the guest never answers, and a CPU is busy with that.
"""

from __future__ import annotations

from typing import Final

import anyio

from ramet.errors import LimitReachedError
from ramet.system.process_limit import exhausted

_LOOK_S: Final = 1.0
_REFUSALS: Final = 1000
"""Refusals in `_LOOK_S`: only a VMM in a loop asks for so many threads."""
_LIMIT_S: Final = 10.0
"""Time after which a fork is given up if the kernel doesn't count refusals (RLIMIT_NPROC)."""


class Starvation:
    """The forks of one call that are under way, each with the scope that ends it."""

    def __init__(self) -> None:
        self.scopes: dict[str, anyio.CancelScope] = {}
        self.errors: dict[str, LimitReachedError] = {}
        self._starved_s: dict[str, float] = {}

    async def watch(self) -> None:
        """Cancel, with its error in `errors`, what starves. For a task of the call's."""
        before = None
        while True:
            await anyio.sleep(_LOOK_S)
            now = exhausted()
            if now is None:
                self._starved_s.clear()
            else:
                loops = before is not None and now.refusals - before.refusals >= _REFUSALS
                for row_id, scope in self.scopes.items():
                    self._starved_s[row_id] = self._starved_s.get(row_id, 0.0) + _LOOK_S
                    if loops or self._starved_s[row_id] >= _LIMIT_S:
                        self.errors[row_id] = LimitReachedError(now.what, hint=now.cure)
                        scope.cancel()
            before = now
