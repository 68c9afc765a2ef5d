"""Short leases of a Firecracker API socket: `ramet.drivers.http_api` with Firecracker's words.

Source: Firecracker's `swagger/firecracker.yaml`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from ramet.drivers import http_api
from ramet.drivers.http_api import Answer, HttpApi


class Api(HttpApi):
    """A leased API socket of a Firecracker."""

    vmm: ClassVar[str] = "Firecracker"

    def refusal(self, answer: Answer) -> str:
        """Return Firecracker's `fault_message`."""
        try:
            return str(msgspec.json.decode(answer.content, type=dict[str, Any])["fault_message"])
        except (msgspec.MsgspecError, RecursionError, KeyError):
            return answer.content.decode(errors="replace")[:500] or "without a word"


def api(directory: Path, *, who: str, limit_s: float | None = None) -> AbstractAsyncContextManager[Api]:
    """Lease the API of the Firecracker that works in `directory` (`http_api.lease`)."""
    return http_api.lease(Api, directory, who=who, limit_s=limit_s)
