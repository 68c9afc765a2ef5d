"""Time limits of commands: the guest's time counts, and nothing is called killed that may still run.

What happens here is mostly waiting, so all of it happens at once, to a fork each; each test looks at what
came of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest

import ramet
from ramet.engine import limits
from ramet.engine.exec import commands
from ramet.model import protocols

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300), pytest.mark.timing]

PAUSED_S = 4.0
"""Longer than any command here may take, and ramet waits for its guest's word after that."""


BACKSTOP_S = ASK_S = 0.5
"""Ramet's patience with a guest after that, here."""

IMPATIENT = f"""
import sys
from ramet.engine import limits
from ramet.engine.exec import commands
commands.BACKSTOP_S, limits.ASK_S = {BACKSTOP_S}, {ASK_S}
from ramet.cli.main import main
sys.exit(main())
"""


async def paused(vm: protocols.VM) -> None:
    await anyio.sleep(0.5)
    await vm.pause()
    await anyio.sleep(PAUSED_S)
    await vm.resume()


async def ends_in_time(vm: protocols.VM) -> object:
    """A command of 1 s that has 3, while its guest is paused for 4."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(paused, vm)
        result = await vm.exec("sh", "-c", "sleep 1; echo done", timeout=3)
    return result.text


async def ends_too_late(vm: protocols.VM) -> object:
    """One that has 2 s of its guest's time, and then whether it is still there."""
    said: object = "it ended"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(paused, vm)
        try:
            await vm.exec("sleep", "60", timeout=2)
        except ramet.ExecTimeoutError as error:
            left = (await vm.exec("sh", "-c", "ps | grep -c '[s]leep 60'")).text
            said = type(error), "was killed" in str(error), left
    return said


async def is_stopped(vm: ramet.VM) -> object:
    """A client that is paused for longer than its command, its limit, and the patience after that."""
    words = ["exec", "--timeout", "3", vm.name, "sh", "-c", "echo begun; sleep 1; echo done"]
    async with await anyio.open_process(
        [sys.executable, "-c", IMPATIENT, *words],
        env={**os.environ, "RAMET_HOME": str(vm._context.home.root)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    ) as client:
        assert client.stdout is not None
        said = await client.stdout.receive()
        client.send_signal(signal.SIGSTOP)
        await anyio.sleep(6)
        client.send_signal(signal.SIGCONT)
        async for piece in client.stdout:
            said += piece
        return said, await client.wait()


async def stalls(vm: protocols.VM) -> object:
    """A guest that doesn't answer any more: the errors of a command under way, and of one that comes then."""
    pid = (await vm.info()).pid
    assert pid is not None
    errors: list[ramet.GuestTimeoutError] = []

    async def stall() -> None:
        await vm.exec("sh", "-c", "until [ -e /tmp/begun ]; do sleep 0.1; done", check=True)
        os.kill(pid, signal.SIGSTOP)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stall)
        for timeout_s in (3, 1):
            with anyio.fail_after(60):
                try:
                    await vm.exec("sh", "-c", "> /tmp/begun; exec sleep 60", timeout=timeout_s)
                except ramet.GuestTimeoutError as error:
                    errors.append(error)
    os.kill(pid, signal.SIGCONT)
    return errors, (await vm.exec("echo", "back", timeout=60)).text


SCENES: list[Callable[[ramet.VM], Awaitable[object]]] = [ends_in_time, ends_too_late, is_stopped, stalls]
_outcomes: dict[str, object] = {}


@pytest.fixture
async def outcome(warm: ramet.VM, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    """What came of the scene that a test is about: its value, or its error."""
    if not _outcomes:
        monkeypatch.setattr(commands, "BACKSTOP_S", BACKSTOP_S)
        monkeypatch.setattr(limits, "ASK_S", ASK_S)
        monkeypatch.setattr(limits, "PORT_S", 1.0)

        async def play(scene: Callable[[ramet.VM], Awaitable[object]], vm: ramet.VM) -> None:
            try:
                _outcomes[scene.__name__] = await scene(vm)
            except Exception as error:
                _outcomes[scene.__name__] = error

        async with warm.fork(len(SCENES)) as forks, anyio.create_task_group() as tasks:
            for scene, vm in zip(SCENES, forks, strict=True):
                await vm.exec("true")
                tasks.start_soon(partial(play, scene, vm))
    return _outcomes[request.param]


@pytest.mark.deep
@pytest.mark.parametrize("outcome", ["ends_in_time"], indirect=True)
async def test_a_pause_is_no_time_of_the_commands(outcome: object) -> None:
    assert outcome == "done\n"


@pytest.mark.parametrize("outcome", ["ends_too_late"], indirect=True)
async def test_a_pause_gives_no_command_more_time(outcome: object) -> None:
    assert outcome == (ramet.ExecTimeoutError, True, "0\n")


@pytest.mark.parametrize("outcome", ["is_stopped"], indirect=True)
async def test_a_client_that_was_stopped_gets_what_is_there(outcome: object) -> None:
    assert outcome == (b"begun\ndone\n", 0)


@pytest.mark.parametrize("outcome", ["stalls"], indirect=True)
async def test_a_guest_that_does_not_answer_has_killed_nothing(outcome: object) -> None:
    assert isinstance(outcome, tuple), outcome
    (under_way, later), back = outcome
    assert isinstance(under_way, ramet.ExecUnansweredError)
    assert under_way.exit_code == 124
    assert "may still be running" in str(under_way)
    for error in (under_way, later):
        assert isinstance(error, ramet.GuestTimeoutError)
        assert "killed" not in str(error)
    assert back == "back\n"
