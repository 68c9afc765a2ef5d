"""Guests of an owner that was killed go by themselves, though nobody opens the home; detached ones stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.errors import UnavailableError
from ramet.system.owner_watcher import LOG
from tests.side_by_side import tell
from tests.support.owners import (
    CLEAN_LIMIT_S,
    PROMISED_S,
    Guests,
    kill_both,
    owner,
    records,
    until_clean,
    watchers_of,
)
from tests.support.pids_cgroup import inside, pids_cgroup

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(180)]


async def until_there_is(home: Path, *names: str) -> None:
    """Wait, without opening the home, until those instances and what they have are all that is there."""
    await until_clean(home)
    assert {row.name for row in records(home)} == set(names)


@contextmanager
def owned(home: Path) -> Iterator[Guests]:
    guests = Guests([row for row in records(home) if row.owner is not None])
    try:
        yield guests
    finally:
        guests.close()


@pytest.fixture(scope="module")
async def probe_home(homes: Path, anyio_backend: str) -> AsyncIterator[Path]:
    """A home with a template of the probe guest, `probe`: a fork of it takes 10 ms."""
    directory = Path(tempfile.mkdtemp(dir=homes, prefix="owners-"))
    async with ramet.Host(directory) as host:
        try:
            vm = await host.run("probe", driver="firecracker", name="probe", memory="32M")
        except UnavailableError as error:
            pytest.skip(error.message)
        await (await vm.template()).detach()
    yield directory
    async with ramet.Host(directory) as host:
        for instance in await host.list(everything=True):
            await (await host.get(instance.id)).remove(force=True)


@pytest.mark.core
@pytest.mark.timing
async def test_the_guests_of_a_killed_owner_go_and_detached_ones_stay(warm_home: Path) -> None:
    with owner(warm_home, "warm", 3, detached=1) as process, owned(warm_home) as guests:
        assert guests.alive() == 2
        killed_s = time.monotonic()
        process.kill()  # and it stays a zombie: its parent doesn't wait for it
        took_s = guests.ended_after_s(killed_s, PROMISED_S)
        await until_there_is(warm_home, "warm", "owned-1")
    tell(f"2 QEMU guests of a killed owner were gone after {took_s:.2f} s")
    assert "2 instances removed" in (warm_home / LOG).read_text().splitlines()[-1]
    async with ramet.Host(warm_home) as host:
        detached = await host.get("owned-1")
        assert (await detached.exec("hostname")).text == "owned-1\n"
        await detached.remove(force=True)


async def test_a_stopped_owner_is_alive(warm_home: Path) -> None:
    with owner(warm_home, "warm", 1) as process, owned(warm_home) as guests:
        process.send_signal(signal.SIGSTOP)
        await anyio.sleep(0.5)
        assert guests.alive() == 1
        process.send_signal(signal.SIGCONT)
        assert watchers_of(process.pid) != []
    await until_there_is(warm_home, "warm")


async def test_a_closed_terminal_and_an_interrupted_group_dont_end_the_watcher(probe_home: Path) -> None:
    with owner(probe_home, "probe", 2, start_new_session=True) as process, owned(probe_home) as guests:
        (watcher,) = watchers_of(process.pid)
        assert os.getsid(watcher) == watcher, "the terminal's hang-up would reach it"
        assert Path(f"/proc/{watcher}/cwd").readlink() == Path("/")
        held = {str(path.readlink()) for path in Path(f"/proc/{watcher}/fd").iterdir()}
        assert held == {"/dev/null", "anon_inode:[pidfd]"}, "a pipe's reader would wait for it"
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            os.kill(watcher, number)
        await anyio.sleep(0.2)
        assert watchers_of(process.pid) == [watcher]
        os.killpg(process.pid, signal.SIGKILL)
        guests.ended_after_s(time.monotonic(), CLEAN_LIMIT_S)
    await until_there_is(probe_home, "probe")


async def test_a_watcher_that_was_killed_is_replaced(probe_home: Path) -> None:
    with owner(probe_home, "probe", 2) as process, owned(probe_home) as guests:
        (first,) = watchers_of(process.pid)
        os.kill(first, signal.SIGKILL)
        with anyio.fail_after(CLEAN_LIMIT_S):
            while not (found := [pid for pid in watchers_of(process.pid) if pid != first]):
                await anyio.sleep(0.02)
        assert len(found) == 1
        process.kill()
        guests.ended_after_s(time.monotonic(), CLEAN_LIMIT_S)
    await until_there_is(probe_home, "probe")


async def test_when_both_are_killed_the_next_opening_cleans(probe_home: Path) -> None:
    with owner(probe_home, "probe", 3, detached=1) as process, owned(probe_home) as guests:
        kill_both(process)
        await anyio.sleep(1.0)
        assert guests.alive() == 2, "somebody else has cleaned: this test shows nothing"
        async with ramet.Host(probe_home) as host:
            assert [instance.name for instance in await host.list()] == ["probe", "owned-1"]
            assert guests.alive() == 0
            await (await host.get("owned-1")).remove(force=True)
    await until_there_is(probe_home, "probe")


async def test_leaving_a_host_ends_its_watcher(probe_home: Path) -> None:
    async with ramet.Host(probe_home) as first:
        assert watchers_of(os.getpid()) == [], "it has made nothing"
        async with ramet.Host(probe_home) as second:
            (made,) = await (await second.get("probe")).fork(1)
            watchers = watchers_of(os.getpid())
            assert len(watchers) == 1
            await made.remove(force=True)
        assert watchers_of(os.getpid()) == watchers, "another Host of this process may still make something"
        (made,) = await (await first.get("probe")).fork(1)
        assert watchers_of(os.getpid()) == watchers
    assert watchers_of(os.getpid()) == []


_FORKED = """
import os, sys, anyio, ramet

async def main(name):
    async with ramet.Host(sys.argv[1]) as host:
        await (await host.get("probe")).fork(1, name=name)
        print(name, os.getpid(), flush=True)
        await anyio.sleep_forever()

anyio.run(main, "child" if os.fork() == 0 else "parent")
"""


async def test_a_forked_child_is_an_owner_of_its_own(probe_home: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _FORKED, probe_home], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        pids = dict(process.stdout.readline().split() for _ in range(2))
        with owned(probe_home) as both:
            os.kill(int(pids["child"]), signal.SIGKILL)
            with anyio.fail_after(CLEAN_LIMIT_S):
                while both.alive() > 1:
                    await anyio.sleep(0.02)
            await until_there_is(probe_home, "probe", "parent")
            process.kill()
            both.ended_after_s(time.monotonic(), CLEAN_LIMIT_S)
        await until_there_is(probe_home, "probe")
    finally:
        process.kill()
        process.communicate(timeout=60)


async def test_several_owners_that_are_killed_together(probe_home: Path) -> None:
    """One cleaning is enough for all; none is forgotten."""
    with ExitStack() as running:
        several = [
            running.enter_context(owner(probe_home, "probe", 2, name=f"of{number}")) for number in range(3)
        ]
        with owned(probe_home) as guests:
            assert guests.alive() == 6
            killed_s = time.monotonic()
            for process in several:
                process.kill()
            guests.ended_after_s(killed_s, CLEAN_LIMIT_S)
        await until_there_is(probe_home, "probe")


async def test_a_home_that_is_gone_is_not_made_again(probe_home: Path) -> None:
    with owner(probe_home, "probe", 1) as process:
        (watcher,) = watchers_of(process.pid)
        elsewhere = probe_home.with_name(f"{probe_home.name}-moved")
        pidfd = os.pidfd_open(watcher)
        probe_home.rename(elsewhere)
        try:
            process.kill()
            with anyio.fail_after(CLEAN_LIMIT_S):
                await anyio.wait_readable(pidfd)
            assert not probe_home.exists()
        finally:
            os.close(pidfd)
            elsewhere.rename(probe_home)
    async with ramet.Host(probe_home) as host:
        assert [instance.name for instance in await host.list()] == ["probe"]


_LIMITED = """
import logging, sys, anyio, ramet
logging.basicConfig(stream=sys.stdout, format="%(message)s")

async def main():
    sys.executable = "/nowhere/python"
    async with ramet.Host(sys.argv[1]) as host:
        for _ in range(3):
            for vm in await (await host.get("probe")).fork(1):
                print(vm.receipt.name, flush=True)

anyio.run(main)
"""


def test_without_a_watcher_guests_are_made_and_that_is_said_once(probe_home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, probe_home], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    warning, *made = done.stdout.splitlines()
    assert warning.startswith("should this process be killed, its guests stay until another ramet opens ")
    assert "/nowhere/python" in warning
    assert len(made) == 3


def test_a_pipe_from_the_command_line_ends_with_the_command(probe_home: Path) -> None:
    """`$(ramet fork -q X)`: nothing that it has started keeps its output open."""
    done = subprocess.run(
        [sys.executable, "-m", "ramet.cli.main", "fork", "-q", "--name", "piped", "probe"],
        env={**os.environ, "RAMET_HOME": str(probe_home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    subprocess.run(
        [sys.executable, "-m", "ramet.cli.main", "rm", "-f", "piped"],
        env={**os.environ, "RAMET_HOME": str(probe_home)},
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )


async def test_it_cleans_with_not_a_process_to_spare(probe_home: Path) -> None:
    """The watcher becomes what cleans up, which needs no thread."""
    words = [sys.executable, "-c", _FORKED.replace("os.fork()", "1"), str(probe_home)]
    with pids_cgroup(100) as cgroup:
        process = subprocess.Popen(inside(cgroup, *words), stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with owned(probe_home) as guests:
                (cgroup / "pids.max").write_text("1\n")
                process.kill()
                guests.ended_after_s(time.monotonic(), CLEAN_LIMIT_S)
            await until_there_is(probe_home, "probe")
        finally:
            process.kill()
            process.communicate(timeout=60)


@pytest.mark.deep
@pytest.mark.timeout(900)
async def test_a_thousand_go_at_once(probe_home: Path) -> None:
    with owner(probe_home, "probe", 1000, detached=1) as process, owned(probe_home) as guests:
        assert guests.alive() == 999
        killed_s = time.monotonic()
        process.kill()
        took_s = guests.ended_after_s(killed_s, PROMISED_S)
        await until_there_is(probe_home, "probe", "owned-1")
        clean_s = time.monotonic() - killed_s
    tell(
        f"999 guests of a killed owner were gone after {took_s:.2f} s,"
        f" their directories after {clean_s:.2f} s"
    )
    async with ramet.Host(probe_home) as host:
        await (await host.get("owned-1")).remove(force=True)


async def test_a_ramet_in_an_archive_is_watched_too(probe_home: Path, tmp_path: Path) -> None:
    """Its watcher is given its source, and what cleans up the path of its imports."""
    archive = tmp_path / "ramet.zip"
    source = Path(ramet.__file__).parents[1]
    with zipfile.ZipFile(archive, "w") as packed:
        for path in source.glob("ramet/**/*"):
            if path.is_file() and path.suffix != ".pyc":
                packed.write(path, path.relative_to(source))
    with (
        owner(probe_home, "probe", 2, env={**os.environ, "PYTHONPATH": str(archive)}) as process,
        owned(probe_home) as guests,
    ):
        assert guests.alive() == 2
        process.kill()
        guests.ended_after_s(time.monotonic(), CLEAN_LIMIT_S)
    await until_there_is(probe_home, "probe")
