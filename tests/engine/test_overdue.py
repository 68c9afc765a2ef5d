"""Time limits of commands: the guest's time counts, and nothing is called killed that may still run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import anyio
import pytest

import ramet
from ramet.engine import execution, limits

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300), pytest.mark.timing]


async def paused_for(vm: ramet.VM, seconds: float) -> None:
    await anyio.sleep(0.5)
    await vm.pause()
    await anyio.sleep(seconds)
    await vm.resume()


async def test_a_pause_is_no_time_of_the_commands(warm: ramet.VM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "BACKSTOP_S", 0.5)
    monkeypatch.setattr(limits, "ASK_S", 0.5)
    async with warm.fork(1) as (vm,), anyio.create_task_group() as tasks:
        await vm.exec("true")
        tasks.start_soon(paused_for, vm, 8)
        done = await vm.exec("sh", "-c", "sleep 2; echo done", timeout=6)
        assert done.text == "done\n"
        tasks.start_soon(paused_for, vm, 5)
        with pytest.raises(ramet.ExecTimeoutError, match="was killed") as caught:
            await vm.exec("sleep", "60", timeout=3)
        assert type(caught.value) is ramet.ExecTimeoutError
        assert (await vm.exec("sh", "-c", "ps | grep -c '[s]leep 60'")).text == "0\n"


async def test_a_client_that_was_stopped_gets_what_is_there(warm: ramet.VM) -> None:
    async with warm.fork(1) as (vm,):
        home = str(vm._context.home.root)
        words = ["exec", "--timeout", "4", vm.name, "sh", "-c", "echo begun; sleep 2; echo done"]
        async with await anyio.open_process(
            [sys.executable, "-m", "ramet.cli.main", *words],
            env={**os.environ, "RAMET_HOME": home},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        ) as client:
            assert client.stdout is not None
            said = await client.stdout.receive()
            client.send_signal(signal.SIGSTOP)
            await anyio.sleep(12)
            client.send_signal(signal.SIGCONT)
            async for piece in client.stdout:
                said += piece
            assert (said, await client.wait()) == (b"begun\ndone\n", 0)


async def test_a_guest_that_does_not_answer_has_killed_nothing(
    warm: ramet.VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "BACKSTOP_S", 0.5)
    monkeypatch.setattr(limits, "ASK_S", 1.0)
    async with warm.fork(1) as (vm,):
        pid = (await vm.info()).pid
        assert pid is not None
        async with anyio.create_task_group() as tasks:

            async def stall() -> None:
                await anyio.sleep(1)
                os.kill(pid, signal.SIGSTOP)

            tasks.start_soon(stall)
            with anyio.fail_after(60), pytest.raises(ramet.ExecUnansweredError) as caught:
                await vm.exec("sleep", "60", timeout=3)
        assert isinstance(caught.value, ramet.GuestTimeoutError)
        assert caught.value.exit_code == 124
        assert "killed" not in str(caught.value)
        assert "may still be running" in str(caught.value)
        monkeypatch.setattr(limits, "PORT_S", 1.0)
        with anyio.fail_after(60), pytest.raises(ramet.GuestTimeoutError) as caught_early:
            await vm.exec("sleep", "60", timeout=1)
        assert "killed" not in str(caught_early.value)
        os.kill(pid, signal.SIGCONT)
        assert (await vm.exec("echo", "back", timeout=60)).text == "back\n"
