"""Commands in a guest through the whole stack."""

from __future__ import annotations

import hashlib
import re

import anyio
import pytest

import ramet
from ramet.drivers import log_limits
from ramet.model import protocols

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def test_what_a_linux_user_expects_is_there(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        said = await vm.exec(
            "sh",
            "-c",
            "echo $PATH; echo $HOME; pwd; id -un; stat -f -c %T /proc /sys /run /tmp; "
            "stat -c %a / /tmp; ls -d /dev/pts /dev/shm /dev/null /dev/fd; "
            "tty </dev/ptmx >/dev/null; echo $?; "
            "ip addr show lo | grep -c 127.0.0.1",
            check=True,
        )
        lines = said.text.split("\n")
        assert lines[:4] == [
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "/root",
            "/root",
            "root",
        ]
        assert lines[4:9] == ["proc", "sysfs", "tmpfs", "tmpfs", "755"]
        assert lines[9] == "1777"
        assert lines[10:14] == ["/dev/fd", "/dev/null", "/dev/pts", "/dev/shm"]
        assert lines[-2] == "1"


@pytest.mark.core
async def test_streams_codes_signals_and_environment(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        both = await vm.exec("sh", "-c", "echo out; echo err >&2; exit 7")
        assert (both.stdout, both.stderr, both.exit_code, both.signal) == (b"out\n", b"err\n", 7, None)
        killed = await vm.exec("sh", "-c", "kill -TERM $$")
        assert (killed.exit_code, killed.signal, killed.shell_code) == (None, 15, 143)
        with pytest.raises(ramet.ExecError, match=r"sh: exit code 3: .*sorry"):
            await vm.exec("sh", "-c", "echo sorry >&2; exit 3", check=True)
        env = await vm.exec(
            "sh", "-c", "echo $A$B; pwd; id -u", env={"A": "x", "B": "y z"}, cwd="/tmp", user="nobody"
        )
        assert env.text.split("\n")[:2] == ["xy z", "/tmp"]
        assert env.text.split("\n")[2] != "0"
        data = b"\x00\xff\x7e\x7d" * 50_000
        assert (await vm.exec("sha1sum", stdin=data)).text.split()[0] == hashlib.sha1(data).hexdigest()


async def test_what_cannot_be_started_says_so(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        with pytest.raises(ramet.ExecNotFoundError) as missing:
            await vm.exec("no-such-program")
        assert missing.value.exit_code == 127
        with pytest.raises(ramet.ExecNotExecutableError) as forbidden:
            await vm.exec("/etc/passwd")
        assert forbidden.value.exit_code == 126
        with pytest.raises(ramet.UsageError):
            await vm.exec()
        with pytest.raises(ramet.UsageError, match="standard input"):
            await vm.exec("echo", "x" * 100_000)
        assert (await vm.exec("true")).ok


async def test_a_timeout_kills_the_whole_group(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        with pytest.raises(ramet.ExecTimeoutError) as caught:
            await vm.exec("sh", "-c", "sleep 300 & sleep 300", timeout=0.5)
        assert caught.value.exit_code == 124
        left = await vm.exec("sh", "-c", "ps | grep -c '[s]leep 300'")
        assert left.text.strip() == "0"


@pytest.mark.timing
async def test_cancelling_kills_the_command(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        with anyio.move_on_after(1.0):
            await vm.exec("sleep", "301")
        assert (await vm.exec("sh", "-c", "ps | grep -c '[s]leep 301'")).text.strip() == "0"


async def test_many_commands_share_one_port(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        results: dict[int, str] = {}

        async def one(number: int) -> None:
            results[number] = (await vm.exec("sh", "-c", f"sleep 0.2; echo {number}")).text

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(one, number)
        assert results == {number: f"{number}\n" for number in range(20)}


async def test_a_command_of_the_parents_goes_on_in_the_fork_and_is_listed(warm: protocols.VM) -> None:
    (source,) = await warm.fork(1)
    pid = await source.spawn("sh", "-c", "while true; do date +%s%N > /tmp/beat; sleep 0.1; done")
    base = await source.template()
    async with base.fork(1) as (vm,):
        first = (await vm.exec("cat", "/tmp/beat")).text
        with anyio.fail_after(20):
            while (await vm.exec("cat", "/tmp/beat")).text == first:
                pass
        listed = (await vm.inspect()).processes
        assert listed is not None
        assert [process.pid for process in listed if process.detached] == [pid]
    await base.remove()


async def test_a_process_is_talked_to_as_it_runs(warm: protocols.VM) -> None:
    async with (
        warm.fork(1) as (vm,),
        vm.process("sh", "-c", "while read line; do echo got $line; done; exit 5", stdin=True) as process,
    ):
        output = process.output()
        for word in (b"one", b"two"):
            await process.write(word + b"\n")
            assert (await anext(output)).data == b"got " + word + b"\n"
        await process.close_stdin()
        assert [chunk async for chunk in output] == []
        assert (await process.wait()).exit_code == 5


async def test_output_without_bound_is_stopped(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        with pytest.raises(ramet.GuestError, match="output"):
            await vm.exec("cat", "/dev/zero", max_output_bytes=1_000_000)
        assert (await vm.exec("true")).ok


async def test_the_console_is_a_bounded_ring(warm: ramet.VM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that floods its console fills so much of the host's disk and no more, and goes on; whoever
    looks cuts it to a ring. The limit is 16 MiB, and smaller here: an emulated serial line is slow.
    """
    assert log_limits.LARGEST_LOG_BYTES == 16 << 20
    monkeypatch.setattr(log_limits, "LARGEST_LOG_BYTES", 1200 << 10)
    async with warm.fork(1) as (vm,):
        console = vm.directory / "console.log"
        flood = "head -c 1300000 /dev/zero | tr '\\0' 'x' > /dev/console; echo still here"
        result = await vm.exec("sh", "-c", flood, timeout=150, check=True)
        assert result.text == "still here\n"
        assert console.stat().st_size == 1200 << 10
        tail = await vm.logs()
        assert len(tail) <= 1 << 20
        assert console.stat().st_size < 1 << 20
        await vm.exec("sh", "-c", "echo after the flood > /dev/console", check=True)
        assert b"after the flood" in await vm.logs()
        assert re.search(rb"x{100}", tail)
