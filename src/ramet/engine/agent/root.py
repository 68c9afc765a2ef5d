"""The root of a container image's guest, as its agent tells it."""

from __future__ import annotations

from ramet.engine import limits
from ramet.guest.client import AgentClient
from ramet.guest.machine import RootKind
from ramet.model.schema import GuestRoot


async def ask_for_root(client: AgentClient) -> GuestRoot | None:
    """Return the root as the guest sees it; None for a guest of a built-in image. Raises `GuestError`."""
    room = await client.root_space(timeout_s=limits.INSPECT_S)
    if room is None:
        return None
    return GuestRoot(
        kind="ram" if room.kind is RootKind.RAM else "disk",
        size_bytes=room.total_bytes,
        free_bytes=room.free_bytes,
        free_files=room.free_files,
    )
