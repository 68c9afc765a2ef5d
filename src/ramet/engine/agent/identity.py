"""The proof of life: a guest that has just been booted or resumed is made its own, and says so (I5)."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from pathlib import Path

import anyio
import anyio.abc

from ramet.engine.agent.session import open_stream
from ramet.engine.context import Context
from ramet.engine.vmm import disk_errors
from ramet.engine.vmm.console import last_words
from ramet.errors import GuestError, GuestLostError, GuestTimeoutError, VmmError
from ramet.guest.handshake import handshake
from ramet.guest.messages import IdentityReply, IdentityRequest, Message
from ramet.model.record import ProcessRef, Record
from ramet.system import processes

_SEED_BYTES = 64
_CLOCK_ERROR_GOOD_MS = 100.0
_CLOCK_ERROR_LIMIT_MS = 1000.0
_CLOCK_TRIES = 5
_HANDSHAKES = 5
_NO_BREATH_S = 0.1


def hostname_of(name: str) -> str:
    """Return the hostname of an instance: its name, with `-` for characters that hostname(7) forbids."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", name).strip("-.") or "ramet"


async def verify_identity(
    context: Context,
    record: Record,
    process: ProcessRef,
    *,
    limit_s: float,
    directory: Path | None = None,
    stream: anyio.abc.ByteStream | None = None,
) -> IdentityReply:
    """Give the guest of `record` its identity, and return its answer after its own resume.

    Its VMM works in `directory`, which is the instance's own unless given. `stream` is a connection to its
    agent, if there is one already; it stays open.

    Raises `VmmError`, with the end of the guest's console, when its VMM dies first; `GuestTimeoutError` when
    `limit_s` passes; `GuestError` when the answer differs from the given identity. The guest is in no known
    state then: kill it.
    """
    request = IdentityRequest(
        generation=record.generation,
        seed=os.urandom(_SEED_BYTES),
        hostname=hostname_of(record.name),
        machine_id=record.machine_id,
    )
    place = directory or context.directory(record)
    try:
        with anyio.fail_after(limit_s):
            reply = await _introduce(place, record.machine.agent_ports, request, stream)
    except (TimeoutError, GuestTimeoutError) as error:
        if disk_errors.is_stopped(context, record, place):
            raise VmmError(f"{record.name}: {disk_errors.reason(context, record)}") from error
        raise GuestTimeoutError(
            f"{record.name}: its guest wasn't ready within {limit_s:g} s{last_words(context, record)}",
            hint="if this machine is busy, try again with less at once: `ramet doctor` says what it can do; "
            "copies of a hung guest hang too",
        ) from error
    except GuestError as error:
        # A VMM that dies closes its sockets a moment before its process has ended. A guest that only answers
        # wrongly is given up at once.
        breath_s = processes.LAST_BREATH_S if isinstance(error, GuestLostError) else _NO_BREATH_S
        if await processes.wait_ended(process, timeout_s=breath_s):
            raise VmmError(f"{record.name}: the VMM ended{last_words(context, record)}") from error
        raise
    wrong = [
        what
        for what, is_right in {
            "generation": reply.generation == request.generation,
            "hostname": reply.hostname == request.hostname,
            "machine-id": reply.machine_id == request.machine_id,
            "random bytes": len(set(reply.boot_random)) > 1,
            "clock": abs(reply.clock_error_ms) <= _CLOCK_ERROR_LIMIT_MS,
        }.items()
        if not is_right
    ]
    if wrong:
        raise GuestError(f"{record.name}: the guest didn't take its identity: {', '.join(wrong)} wrong")
    return reply


async def _introduce(
    directory: Path, agent_ports: int, request: IdentityRequest, opened: anyio.abc.ByteStream | None
) -> IdentityReply:
    """Ask until the guest answers, first over the stream `opened`, if there is one.

    A port that closes means that the VMM has ended. A connection that ends before the answer is made again, a
    few times: a restored guest resets its vsock connections when it learns of the restore, perhaps including
    the first new connection. If no other can be made then, the VMM has ended, and the loss is the error.
    """
    lost: GuestLostError | None = None
    tries_left = _CLOCK_TRIES
    losses_left = _HANDSHAKES
    while True:
        try:
            async with nullcontext(opened) if opened else open_stream(directory, agent_ports) as stream:
                answer = await handshake(
                    stream,
                    Message.IDENTITY,
                    request.encode,
                    Message.IDENTITY_DONE,
                    what="a new identity",
                )
        except GuestLostError as error:
            lost = error
            losses_left -= 1
            if losses_left == 0 or opened is not None:
                raise
            continue
        except GuestError as error:
            if lost is None:
                raise
            raise lost from error
        reply = IdentityReply.decode(answer.payload, (answer.sent_ns + answer.arrived_ns) // 2)
        tries_left -= 1
        # On a busy host the time that was sent is old when it arrives. The guest is awake by now: once more
        # is quicker.
        if abs(reply.clock_error_ms) <= _CLOCK_ERROR_GOOD_MS or tries_left == 0:
            return reply
