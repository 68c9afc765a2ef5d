"""The main process: with its end the agent ends, after its client has been told."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from ramet.errors import ExecError, ExecNotFoundError, GuestError
from ramet.guest.client import run_exec
from ramet.guest.fields import put_number, put_text
from ramet.guest.messages import ExecFlag, ExecRequest, Message
from tests.support.unix_sockets import listening

from .test_agent import session, sh

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
def agent(agent_program: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An agent on a socket, whose console is the file `console`."""
    socket = tmp_path / "agent0.sock"
    with (
        (tmp_path / "console").open("wb") as console,
        subprocess.Popen([agent_program, "--socket", socket], stderr=console) as process,
    ):
        try:
            deadline = time.monotonic() + 10
            while not listening(socket):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
            yield process
        finally:
            process.kill()


async def end_of(agent: subprocess.Popen[bytes], directory: Path) -> bytes:
    """Wait for the agent's end, and return what it wrote to its console."""
    assert await anyio.to_thread.run_sync(agent.wait, 10) == 0
    return (directory / "console").read_bytes()


@pytest.mark.parametrize(
    ("script", "end"),
    [("exit 3", "exit 3"), ("kill -KILL $$", "signal 9"), ("true", "exit 0")],
)
async def test_with_its_end_everything_ends(
    agent: subprocess.Popen[bytes], tmp_path: Path, script: str, end: str
) -> None:
    async with session(tmp_path) as client:
        result = await run_exec(client, sh(f"cat; {script}", main=True), b"x" * 200_000)
        assert result.stdout == b"x" * 200_000
        assert f"exit {result.exit_code}" == end or f"signal {result.signal}" == end
    assert await end_of(agent, tmp_path) == f"\nramet: the main process ended: {end}\n".encode()


async def test_it_may_have_no_client(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    async with session(tmp_path) as client:
        assert await client.spawn(sh("exit 7", main=True)) > 0
    assert b"ended: exit 7\n" in await end_of(agent, tmp_path)


async def test_a_client_that_leaves_does_not_keep_it(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Its output goes nowhere then, and its end is the guest's as before."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = (
        put_text(1, "sh") + put_text(1, "-c") + put_text(1, f"read go <{fifo}; yes | head -c 1000000; exit 4")
    )
    async with session(tmp_path) as client:
        started = await client._connection.request(
            Message.EXEC,
            command + put_number(6, 4, ExecFlag.MAIN),
            Message.STARTED,
            what="a start",
            timeout_s=5,
        )
        assert started.payload
    fifo.write_text("go\n")
    assert b"ended: exit 4\n" in await end_of(agent, tmp_path)


async def test_there_is_one_at_most(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    async with (
        session(tmp_path) as client,
        client.start(sh("cat", main=True, stdin_open=True)) as process,
    ):
        with pytest.raises(ExecError, match="has a main process already"):
            await client.spawn(sh("true", main=True))
        assert (await run_exec(client, sh("echo another"))).stdout == b"another\n"
        await process.close_stdin()
        assert (await process.wait()).exit_code == 0
    assert b"ended: exit 0\n" in await end_of(agent, tmp_path)


async def test_one_that_cannot_be_started_ends_nothing(
    agent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    async with session(tmp_path) as client:
        for _ in range(2):
            with pytest.raises(ExecNotFoundError):
                await client.spawn(ExecRequest(("no-such-program",), main=True))
            with pytest.raises(ExecNotFoundError):
                await run_exec(client, ExecRequest(("no-such-program",), main=True))
        assert (await run_exec(client, sh("echo on"))).stdout == b"on\n"
        assert await client.processes() == []
        await client.spawn(sh("exit 5", main=True))
    assert b"ended: exit 5\n" in await end_of(agent, tmp_path)


async def test_its_directory_is_made(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    cwd = tmp_path / "a" / "b"
    async with session(tmp_path) as client:
        with pytest.raises(ExecError, match=re.escape(f"chdir {cwd}: No such file")):
            await client.spawn(sh("true", cwd=str(cwd)))
        (tmp_path / "file").touch()
        with pytest.raises(ExecError, match=r"mkdir .*: Not a directory"):
            await client.spawn(sh("true", main=True, cwd=f"{tmp_path}/file/x"))
        result = await run_exec(client, sh("pwd; umask; ls -ld .", main=True, cwd=str(cwd)))
        assert result.stdout.startswith(f"{cwd}\n0022\ndrwxr-xr-x".encode())
    await end_of(agent, tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a command as somebody else")
async def test_its_user_need_not_be_allowed_to_enter_it(
    agent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    async with session(tmp_path) as client:
        result = await run_exec(client, sh("pwd -P; id -u", main=True, cwd=str(closed), user="65534:65534"))
        assert result.stdout == f"{closed}\n65534\n".encode()
    await end_of(agent, tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a command as somebody else")
async def test_a_user_may_open_its_own_output_again(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Programs that log to /dev/stdout do; a pipe of root's would be closed to them."""
    async with session(tmp_path) as client:
        result = await run_exec(
            client, sh("cat /dev/stdin >/dev/stdout; echo e >/dev/stderr", user="65534:65534"), b"i"
        )
        assert (result.stdout, result.stderr) == (b"i", b"e\n")


@pytest.mark.parametrize("name", ["systemd", "init"])
async def test_an_init_is_refused_by_name(agent: subprocess.Popen[bytes], tmp_path: Path, name: str) -> None:
    directory = tmp_path / "bin"
    directory.mkdir()
    shutil.copy("/bin/true", directory / name)
    link = tmp_path / "link"
    link.symlink_to(directory / name)
    async with session(tmp_path) as client:
        for program in (name, str(directory / name), str(link)) if name == "systemd" else ("/sbin/init",):
            if name == "init" and not Path(program).exists():
                pytest.skip("no /sbin/init on this machine")
            with pytest.raises(
                ExecError, match=f"{program} is (systemd|an init), which has to be process 1"
            ) as refused:
                await client.spawn(ExecRequest((program,), main=True, env={"PATH": str(directory)}))
            assert type(refused.value) is ExecError
        if name == "init":  # elsewhere a program may have any name
            await client.spawn(ExecRequest((str(directory / name),), main=True))
            assert b"ended: exit 0\n" in await end_of(agent, tmp_path)
        else:  # as another command it does what it does
            assert (await run_exec(client, ExecRequest((str(directory / name),)))).exit_code == 0


async def test_a_stop_signal_is_one(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    command = put_text(1, "true") + put_number(6, 4, ExecFlag.MAIN)
    async with session(tmp_path) as client:
        for wrong in (
            put_number(7, 4, 0),
            put_number(7, 4, 65),
            put_number(7, 8, 15),
            put_number(7, 4, 2**32 - 1),
        ):
            with pytest.raises(GuestError, match="not a signal to stop it by"):
                await client._connection.request(
                    Message.EXEC, command + wrong, Message.STARTED, what="a start", timeout_s=5
                )
        assert await client.processes() == []


async def test_its_clients_signals_reach_it(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    async with session(tmp_path) as client, client.start(sh("sleep 60", main=True)) as process:
        await process.signal(signal.SIGTERM)
        assert (await process.wait()).signal == signal.SIGTERM
    assert b"ended: signal 15\n" in await end_of(agent, tmp_path)
