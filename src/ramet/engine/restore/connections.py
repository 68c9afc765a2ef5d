"""Connections held open while a guest is restored: a session with its VMM, and a connection to its agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio.abc

from ramet.errors import GuestError
from ramet.guest.ports import claim_port
from ramet.model.record import Machine


class Connections:
    """Made by `connections`. `vmm` has the session with the VMM, and may be closed before the rest."""

    def __init__(self, vmm: AsyncExitStack, agent: AsyncExitStack) -> None:
        self.vmm = vmm
        self.stream: anyio.abc.ByteStream | None = None
        """To the agent, if it could be reached before its guest was resumed."""
        self._agent = agent

    async def reach_agent(self, directory: Path, machine: Machine) -> None:
        """Connect to the agent of a paused guest, if there is a port for that.

        The guest learns of the connection with its first steps: after them it would be an interrupt, and in
        an emulated fork 2 ms. The fault of a VMM that takes no connection shows with the next request to it.
        """
        if machine.agent_ports > 0:
            # Without a stream the guest is reached after its resume, and a failure then is reported.
            with suppress(GuestError):
                self.stream = await self._agent.enter_async_context(
                    claim_port(directory, machine.agent_ports, wait_s=0)
                )


@asynccontextmanager
async def connections() -> AsyncIterator[Connections]:
    """Yield connections that are closed at the end of the block."""
    async with AsyncExitStack() as agent, AsyncExitStack() as vmm:
        yield Connections(vmm, agent)
