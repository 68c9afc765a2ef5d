"""Connections to guests' agents, one per instance as long as a task of this process uses it.

An agent port serves one client, and a client many requests. So all requests of this process to an instance
share a port, and other processes have the other ports. Vsock connections are shared too, to keep a single
way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import anyio
import anyio.abc

from ramet.errors import GuestError, GuestLostError, GuestTimeoutError, PortsBusyError, RametError
from ramet.guest.client import AgentClient
from ramet.guest.resumption import OpenStream
from ramet.guest.waiting import UNANSWERED_HINT, last_look

Claim = Callable[[], AbstractAsyncContextManager[object]]
"""A function whose context claims what a stream needs."""

_ANSWER_WAIT_S = 120.0
_HANDSHAKES = 5


class _Connection:
    """A connection being made or made, and how many use it."""

    def __init__(self) -> None:
        self.users = 0
        self.claimed = False
        self.decided = anyio.Event()
        # Shielded: when a Host is cancelled, its users' own cleanup still needs the connection. It goes with
        # the last.
        self.scope = anyio.CancelScope(shield=True)
        self.client: AgentClient | None = None
        self.error: Exception | None = None


class Agents:
    """The agent connections of one Host. `tasks` outlives every lease."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._open: dict[str, _Connection] = {}
        self._held: set[_Connection] = set()

    @asynccontextmanager
    async def lease(
        self,
        instance_id: str,
        *,
        open_stream: OpenStream,
        timeout_s: float,
        reopen: OpenStream | None = None,
        claim: Claim = nullcontext,
        own: bool = False,
    ) -> AsyncIterator[AgentClient]:
        """Lease the agent of an instance, over the stream that is open to it or else a new stream.

        `timeout_s` limits this caller's wait for the first answer. There is no other limit, so that the error
        names the step that took too long. A lost stream is replaced with `reopen`, which has to lead to the
        same VMM, and open requests continue there, if the agent can do that.

        `claim` is entered before the first stream is opened, and left after the last. `own`: while no
        answered stream is open, this caller gets a stream that it doesn't share with callers without `own`:
        their stream may wait for a claim, or never be answered.

        Raises `PortsBusyError` when the claim takes too long, `GuestTimeoutError` when the answer does,
        `GuestError` or what `claim` and `open_stream` raise. A connection that fails in use is not used
        again.
        """
        connection = self._open.get(instance_id)
        if own and (connection is None or connection.client is None):
            instance_id = f"{instance_id}:own"
            connection = self._open.get(instance_id)
        if connection is None:
            connection = self._open[instance_id] = _Connection()
            self._held.add(connection)
            self._tasks.start_soon(self._hold, connection, instance_id, claim, open_stream, reopen)
        connection.users += 1
        try:
            with anyio.move_on_after(timeout_s):
                await connection.decided.wait()
            if not connection.decided.is_set():
                await last_look(connection.decided.wait)
            if not connection.decided.is_set() and not connection.claimed:
                raise PortsBusyError(f"every agent port of the guest stayed in use for {timeout_s:g} s")
            if not connection.decided.is_set():
                raise GuestTimeoutError(
                    f"no agent answered in the guest within {timeout_s:g} s", hint=UNANSWERED_HINT
                )
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
                connection.scope.cancel()

    def probe_liveness(self, instance_id: str) -> None:
        """Have the connection to an instance, if there is one, find out at once whether it was cut.

        Call it after saving the VMM's state.
        """
        for which in (instance_id, f"{instance_id}:own"):
            connection = self._open.get(which)
            if connection is not None and connection.client is not None:
                connection.client.probe_liveness()

    def close(self) -> None:
        """Close every connection that is still in use, which ends its requests."""
        for connection in self._held:
            connection.scope.cancel()

    def _forget(self, instance_id: str, connection: _Connection) -> None:
        if self._open.get(instance_id) is connection:
            del self._open[instance_id]

    async def _hold(
        self,
        connection: _Connection,
        instance_id: str,
        claim: Claim,
        open_stream: OpenStream,
        reopen: OpenStream | None,
    ) -> None:
        """Own the connection while it is being made and until it has no users.

        Its reader task and its port's lock belong to this task.
        """
        try:
            with connection.scope:
                async with claim():
                    connection.claimed = True
                    await self._serve(connection, open_stream, reopen)
        except RametError as error:
            connection.error = error
        except Exception as error:
            # Any error here is this instance's trouble and not its Host's.
            connection.error = GuestError(f"the agent's connection failed: {error}")
        finally:
            connection.client = None
            self._held.discard(connection)
            self._forget(instance_id, connection)
            connection.decided.set()

    async def _serve(
        self, connection: _Connection, open_stream: OpenStream, reopen: OpenStream | None
    ) -> None:
        """Shake hands and keep the connection until a cancellation.

        A stream that ends before the handshake is made again, a few times: a restored guest resets its vsock
        connections when it learns of the restore, perhaps including the first new connection. If no other can
        be made then, the VMM has ended, and the loss is the error.
        """
        lost: GuestLostError | None = None
        for tries_left in reversed(range(_HANDSHAKES)):
            try:
                async with (
                    open_stream() as stream,
                    AgentClient.connect(stream, timeout_s=_ANSWER_WAIT_S, reopen=reopen) as client,
                ):
                    connection.client = client
                    connection.decided.set()
                    await anyio.sleep_forever()
            except GuestLostError as error:
                if connection.client is not None or tries_left == 0:
                    raise
                lost = error
            except GuestError as error:
                if lost is None or connection.client is not None:
                    raise
                raise lost from error
