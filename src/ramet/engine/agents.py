"""Connections to guests' agents, one an instance for as long as somebody in this process uses it.

An agent port serves one client, a client many requests: whatever this process wants of an instance at one
time shares one port, and other processes have the other ports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc

from ramet.errors import GuestError
from ramet.guest.client import AgentClient
from ramet.guest.ports import claim_port

_PORT_WAIT_S = 30.0


class _Connection:
    """A connection being made or made, and how many use it."""

    def __init__(self) -> None:
        self.users = 0
        self.settled = anyio.Event()
        self.unused = anyio.Event()
        self.client: AgentClient | None = None
        self.error: BaseException | None = None


class Agents:
    """The agent connections of one Host. `tasks` outlives every lease."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._open: dict[str, _Connection] = {}

    @asynccontextmanager
    async def lease(
        self, instance_id: str, directory: Path, *, ports: int, timeout_s: float
    ) -> AsyncIterator[AgentClient]:
        """The agent of an instance. `timeout_s` bounds the wait for its first answer.

        Raises `PortsBusyError`, `GuestTimeoutError` or `GuestError`. A connection that fails in use is not
        used again.
        """
        connection = self._open.get(instance_id)
        if connection is None:
            connection = self._open[instance_id] = _Connection()
            self._tasks.start_soon(self._hold, connection, instance_id, directory, ports, timeout_s)
        connection.users += 1
        try:
            await connection.settled.wait()
            if connection.client is None:
                raise connection.error or GuestError("the agent's connection was closed")
            yield connection.client
        except GuestError:
            self._forget(instance_id, connection)
            raise
        finally:
            connection.users -= 1
            if connection.users == 0:
                self._forget(instance_id, connection)
                connection.unused.set()

    def _forget(self, instance_id: str, connection: _Connection) -> None:
        if self._open.get(instance_id) is connection:
            del self._open[instance_id]

    async def _hold(
        self, connection: _Connection, instance_id: str, directory: Path, ports: int, timeout_s: float
    ) -> None:
        """Own the connection: its reader task and its port's lock belong to this task until nobody uses
        it.
        """
        try:
            async with (
                claim_port(directory, ports, wait_s=_PORT_WAIT_S) as stream,
                AgentClient.connect(stream, timeout_s=timeout_s) as client,
            ):
                connection.client = client
                connection.settled.set()
                await connection.unused.wait()
        except GuestError as error:
            connection.error = error
        except OSError as error:
            connection.error = GuestError(f"the agent's port can't be reached: {error}")
        finally:
            connection.client = None
            self._forget(instance_id, connection)
            connection.settled.set()
