"""A session with the agent of a living instance, over whichever transport its machine has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import msgspec

from ramet.concurrency import alongside
from ramet.engine import limits
from ramet.engine.context import Context
from ramet.engine.vmm.console import last_words
from ramet.errors import GuestLostError, GuestTimeoutError, RametError, UnseenError, VmmError
from ramet.guest.client import AgentClient
from ramet.guest.ports import claim_number, claim_port, command_ports, connect_port
from ramet.guest.vsock import connect_vsock
from ramet.model.record import ProcessRef, Record
from ramet.system import process_ref, processes

_CLOCK = "its clock wasn't corrected after it was paused"
_CLOCK_REASONS = "its clock wasn't "
"""The beginning of such a reason in a record, an older ramet's too, which had other words for it."""


class _Way:
    """The way to a guest's agent for commands: a port that others don't use, then streams through it."""

    def __init__(self, directory: Path, agent_ports: int) -> None:
        self._directory = directory
        self._ports = agent_ports
        self._number = 0

    @asynccontextmanager
    async def claim(self) -> AsyncIterator[None]:
        """Claim a port for commands. Over vsock it is one of as many places as the agent takes clients."""
        count = command_ports(self._ports)
        async with claim_number(self._directory, count, limits.PORT_S) as self._number:
            yield

    def open(self) -> AbstractAsyncContextManager[anyio.abc.ByteStream]:
        """Open a stream to the agent."""
        if self._ports > 0:
            return connect_port(self._directory, self._number)
        return connect_vsock(self._directory, wait_s=limits.ACCEPT_S)


def open_stream(directory: Path, agent_ports: int) -> AbstractAsyncContextManager[anyio.abc.ByteStream]:
    """Open a stream to the agent for ramet's own requests, through any port, also the reserved port."""
    if agent_ports > 0:
        return claim_port(directory, agent_ports, wait_s=limits.PORT_S)
    return connect_vsock(directory, wait_s=limits.ACCEPT_S)


@asynccontextmanager
async def _reconnect(directory: Path, process: ProcessRef) -> AsyncIterator[anyio.abc.ByteStream]:
    """Connect over vsock to that VMM and no other.

    A directory may get another VMM, whose guest has an older state of the same memory: open requests aren't
    resumed there.
    """
    # What SO_PEERCRED says of a process of another PID namespace: unix(7).
    pid = process.pid if process_ref.is_here(process) else 0
    async with connect_vsock(directory, wait_s=limits.RECONNECT_S, listener_pid=pid) as stream:
        yield stream


def _lease_of(record: Record, process: ProcessRef) -> str:
    """By process, too: an instance that is rewound has two VMMs for a moment."""
    return f"{record.id}:{process.pid}:{process.started}"


def connections_may_be_cut(context: Context, record: Record) -> None:
    """Have open connections to the guest checked, because its VMM has just saved the guest's state.

    The save may have reset the guest's connections.
    """
    assert record.vmm is not None
    context.agents.probe_liveness(_lease_of(record, record.vmm.process))


@asynccontextmanager
async def agent_of(
    context: Context,
    record: Record,
    process: ProcessRef,
    *,
    timeout_s: float,
    directory: Path | None = None,
    own: bool = False,
) -> AsyncIterator[AgentClient]:
    """Lease the agent of a living instance, whose VMM works in `directory`, by default the instance's own.

    `own` is for ramet's own short requests to a guest: they have a way even if clients use all others. A VMM
    that ends while the agent is used is a `VmmError` at once, not a time-out later. Otherwise raises
    `PortsBusyError`, `GuestTimeoutError`, `GuestError`.
    """
    place = directory or context.directory(record)
    ports = record.machine.agent_ports
    way = _Way(place, ports)
    which = _lease_of(record, process)
    reopen = None if ports > 0 else partial(_reconnect, place, process)
    died = False
    failure: Exception | None = None
    scope = anyio.CancelScope()

    async def watch() -> None:
        nonlocal died
        with suppress(UnseenError):  # then the end of the connection tells
            died = await processes.wait_ended(process)
            scope.cancel()

    try:
        with scope:
            async with (
                alongside(watch),
                context.agents.lease(
                    which,
                    open_stream=partial(open_stream, place, ports) if own else way.open,
                    timeout_s=timeout_s,
                    reopen=reopen,
                    claim=nullcontext if own else way.claim,
                    own=own,
                ) as agent,
            ):
                yield agent
    except Exception as error:
        failure = error
    if isinstance(failure, GuestLostError):
        # A VMM that dies closes its sockets a moment before its process has ended.
        with suppress(UnseenError):
            died = died or await processes.wait_ended(process, timeout_s=processes.LAST_BREATH_S)
    if died:
        raise VmmError(f"{record.name}: the VMM ended{last_words(context, record)}") from failure
    if type(failure) is GuestTimeoutError and (why := last_words(context, record, only_reasons=True)):
        raise GuestTimeoutError(failure.message + why, hint=failure.hint) from failure
    if failure is not None:
        raise failure


async def correct_clock(context: Context, record: Record) -> str | None:
    """Correct the wall clock of a guest that was paused for a while. Returns None, or why that failed.

    After a failure the guest keeps its own clock, and the caller tells the reason. The guest's monotonic
    clock stays: it never goes backwards, and the guest wasn't there meanwhile.
    """
    assert record.vmm is not None
    try:
        async with agent_of(context, record, record.vmm.process, timeout_s=limits.CLOCK_S, own=True) as agent:
            await agent.set_clock(timeout_s=limits.CLOCK_S)
    except RametError as error:
        return f"{_CLOCK}: {error.message}"
    return None


async def require_clock(context: Context, record: Record) -> None:
    """Correct the wall clock, as `correct_clock`, and record a failure as the instance's reason.

    `inspect` shows the reason. An older reason of that kind is removed when the clock has been corrected.
    """
    why = await correct_clock(context, record)
    if why is None and not (record.reason or "").startswith(_CLOCK_REASONS):
        return
    try:
        context.store.change(
            record.id, lambda row: msgspec.structs.replace(row, reason=why) if row.vmm == record.vmm else row
        )
    except RametError:
        pass  # removed meanwhile, or the disk is full: the guest runs all the same, as it did before
