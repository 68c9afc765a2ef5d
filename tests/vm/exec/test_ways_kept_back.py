"""Clients with commands have every port that they may have: ramet itself still reaches the guest, and who
doesn't get a port is told so.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import msgspec
import pytest

import ramet
from ramet.engine import limits
from ramet.engine.agent import session
from ramet.guest.ports import VSOCK_COMMANDS, claim_number, command_ports
from ramet.model import protocols
from ramet.model.record import Record

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)]


def test_one_port_is_kept_back_whatever_a_machine_has() -> None:
    assert [command_ports(count) for count in (9, 8, 2, 1)] == [8, 7, 1, 1]
    assert command_ports(0) == VSOCK_COMMANDS < 16


@asynccontextmanager
async def full(vm: ramet.VM) -> AsyncIterator[None]:
    """Other processes have all ports for commands: their locks are what counts."""
    async with AsyncExitStack() as claims:
        for _ in range(command_ports(vm._record.machine.agent_ports)):
            await claims.enter_async_context(claim_number(vm.directory, 9, 1))
        yield


def with_ports(vm: ramet.VM, count: int) -> None:
    """As a guest of an older ramet: its machine has fewer ports."""

    def older(record: Record) -> Record:
        return msgspec.structs.replace(
            record, machine=msgspec.structs.replace(record.machine, agent_ports=count)
        )

    vm._context.store.change(vm.id, older)


async def clock_error_s(vm: protocols.VM) -> float:
    """The distance of the second that the guest shows from the time in which it was asked."""
    before_s = time.time()
    shown_s = int((await vm.exec("date", "+%s", check=True)).text)
    return max(before_s - (shown_s + 1), shown_s - time.time(), 0)


@pytest.mark.parametrize("ports", [9, 8])
async def test_the_next_client_is_told_and_ramet_gets_through(
    warm: ramet.VM, monkeypatch: pytest.MonkeyPatch, ports: int
) -> None:
    monkeypatch.setattr(limits, "PORT_S", 0.5)
    async with warm.fork(1) as (vm,):
        with_ports(vm, ports)
        async with full(vm):
            with pytest.raises(ramet.PortsBusyError, match=f"all {ports - 1} agent ports") as caught:
                await vm.exec("true")
            assert caught.value.code == "ports_busy"
            with pytest.raises(ramet.PortsBusyError):
                await vm.spawn("true")
            assert (await vm.inspect()).processes == []
            await vm.pause()
            await anyio.sleep(1.7)  # an error of 0.7 s at least, were the clock not put right
            assert (await vm.resume()).reason is None
            await (await vm.snapshot("beside")).remove()
        assert await clock_error_s(vm) < 0.5
        assert (await vm.info()).reason is None
        async with full(vm):
            stopped = await vm.stop()
        assert (stopped.state, stopped.reason) == ("stopped", None)


async def test_a_command_of_this_process_keeps_no_way_that_was_kept_back(warm: ramet.VM) -> None:
    """The connection that ramet opened for itself isn't one that a command goes on using."""
    async with warm.fork(1) as (vm,), AsyncExitStack() as others:
        for _ in range(7):
            await others.enter_async_context(claim_number(vm.directory, 9, 1))
        await vm.pause()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(vm.resume)
            with anyio.fail_after(60):
                while (await vm.info()).state != "running":
                    await anyio.sleep(0.01)
            async with vm.process("sleep", "60"):
                # The kept one, the ninth, is free for others.
                await others.enter_async_context(claim_number(vm.directory, 9, 5))
                with pytest.raises(ramet.PortsBusyError):
                    await others.enter_async_context(claim_number(vm.directory, 9, 0.1))


async def test_a_clock_that_was_not_put_right_is_said(
    warm: ramet.VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CLOCK_S", 0.0)
    async with warm.fork(1) as (vm,):
        await vm.pause()
        resumed = await vm.resume()
        assert resumed.state == "running"
        assert "its clock wasn't corrected" in str(resumed.reason)
        assert (await vm.info()).reason == resumed.reason
        # What is corrected later is forgotten.
        monkeypatch.setattr(limits, "CLOCK_S", 5.0)
        await session.require_clock(vm._context, vm._record)
        assert (await vm.info()).reason is None
