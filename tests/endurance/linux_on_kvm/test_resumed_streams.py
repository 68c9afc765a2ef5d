"""Firecracker's guest resets its vsock connections whenever the VM's state is saved: what clients have under
way goes on.
"""

from __future__ import annotations

import hashlib
import re

import anyio
import pytest

import ramet
from ramet.drivers.firecracker.vmm import FirecrackerVmm
from ramet.errors import GuestLostError, UnavailableError, UsageError
from ramet.guest.client import AgentClient
from ramet.guest.vsock import connect_vsock

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(900)]

SAVES = 3
LIMIT_S = 240


@pytest.fixture
async def source(host: ramet.Host) -> ramet.VM:
    """A running guest under Firecracker."""
    try:
        return await host.run("builtin", name="source", memory="128M", driver="firecracker")
    except (UsageError, UnavailableError) as error:
        if isinstance(error, UsageError) and "no driver" not in error.message:
            raise
        pytest.skip(str(error))


async def save(vm: ramet.VM) -> None:
    """What a capture does to a running Firecracker, as far as its connections notice."""
    context = vm._context
    record = context.store.get(vm.id)
    vmm = context.vmm(record)
    assert isinstance(vmm, FirecrackerVmm)
    await vmm.pause()
    try:
        await vmm.save_snapshot("saved-vmstate", "saved-mem")
    finally:
        await vmm.resume()
        for name in ("saved-vmstate", "saved-mem"):
            (context.directory(record) / name).unlink(missing_ok=True)


async def state_of(vm: ramet.VM) -> str:
    """Whether the guest answers: tells a guest that hangs from a session that does."""
    try:
        done = await vm.exec("cat", "/proc/uptime", "/proc/interrupts", timeout=30)
    except ramet.RametError as error:
        console = (vm.directory / "console.log").read_text(errors="replace")
        return f"the guest doesn't answer ({error}); its console: {console[-500:]}"
    return f"the guest answers: {done.text}"


async def test_commands_go_on_over_saves_of_their_vm(source: ramet.VM) -> None:
    """A slow printer, one that is fed, and one that says nothing until it ends."""
    told: dict[str, object] = {}
    lines = 40

    async def printer() -> None:
        count = f"i=0; while [ $i -lt {lines} ]; do i=$((i + 1))"
        script = f"{count}; echo line $i; echo e$i >&2; sleep 0.3; done; exit 5"
        done = await source.exec("sh", "-c", script)
        told["printer"] = (done.exit_code, done.stdout, done.stderr)

    async def fed() -> None:
        data = bytes(range(256)) * 256
        digest = hashlib.md5(usedforsecurity=False)
        async with source.process("md5sum", stdin=True) as process:
            for _ in range(lines):
                await process.write(data)
                digest.update(data)
                await anyio.sleep(0.2)
            await process.close_stdin()
            said = b"".join([chunk.data async for chunk in process.output()])
        told["fed"] = said.split()[0] == digest.hexdigest().encode()

    async def silent() -> None:
        done = await source.exec("sh", "-c", "sleep 12; echo over; exit 6")
        told["silent"] = (done.exit_code, done.stdout)

    cut = 0
    with anyio.move_on_after(LIMIT_S) as waiting:
        async with anyio.create_task_group() as tasks:
            for command in (printer, fed, silent):
                tasks.start_soon(command)
            for _ in range(SAVES):
                await anyio.sleep(1.5)
                # What would become of them: a client that doesn't come again loses its session.
                async with (
                    connect_vsock(source.directory, 20) as stream,
                    AgentClient.connect(stream) as agent,
                ):
                    await agent.ping()
                    await save(source)
                    with pytest.raises(GuestLostError):
                        await agent.ping(timeout_s=20)
                    cut += 1
    if waiting.cancelled_caught:
        pytest.fail(f"after {cut} saves and {LIMIT_S} s only {told.keys()} ended; {await state_of(source)}")
    assert cut == SAVES
    assert told["silent"] == (6, b"over\n")
    assert told["fed"] is True
    expected = b"".join(b"line %d\n" % number for number in range(1, lines + 1))
    assert told["printer"] == (5, expected, re.sub(rb"line ", b"e", expected))
