"""`ramet.sync`: the same surface for plain code."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import ramet
import ramet.sync
from ramet.errors import NotFoundError, UsageError
from tests.conftest import assert_nothing_left, living_in
from tests.support.shell import wait_until
from tests.unit.api.surface import members


def test_it_has_what_the_async_classes_have() -> None:
    for name in ("Host", "VM", "Snapshot", "Forks", "Process"):
        asynchronous, plain = getattr(ramet, name), getattr(ramet.sync, name)
        inherited = {*dir(list), "begin", "end", "lost", "receive"}
        public = {member for member in members(asynchronous) if not member.startswith("_")} - inherited
        assert public <= set(dir(plain)), name
        for method in public:
            mine, its = getattr(plain, method), getattr(asynchronous, method)
            if callable(its):
                assert not inspect.iscoroutinefunction(mine)
                assert list(inspect.signature(mine).parameters) == list(inspect.signature(its).parameters)


def test_a_closed_host_says_so(tmp_path: Path) -> None:
    host = ramet.sync.Host(tmp_path)
    assert host.home == tmp_path
    with pytest.raises(UsageError, match="isn't open"):
        host.list()
    with host:
        assert host.list() == []
    with pytest.raises(UsageError):
        host.list()
    with host:
        assert host.tree() == []


def test_errors_come_through(tmp_path: Path) -> None:
    with ramet.sync.Host(tmp_path) as host, pytest.raises(NotFoundError):
        host.get("nosuch")
    with pytest.raises(ZeroDivisionError), ramet.sync.Host(tmp_path):
        raise ZeroDivisionError


@pytest.mark.timing
def test_a_home_that_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = threading.active_count()
    with pytest.raises(ramet.RametError):
        ramet.sync.Host(tmp_path / "file").__enter__()
    wait_until(lambda: threading.active_count() <= before)


def test_where_a_loop_runs_already(tmp_path: Path) -> None:
    async def cell() -> list[ramet.Instance]:
        with ramet.sync.Host(tmp_path) as host:  # as in a notebook
            return host.list()

    assert asyncio.run(cell()) == []


@pytest.mark.slow
def test_iterators_that_threads_forget_end_with_their_host() -> None:
    """The loop's end closes generators; none of them may be closed by a thread's collection meanwhile."""
    script = """
        import asyncio, threading
        from ramet import sync
        async def endless():
            try:
                while True:
                    yield 1
            finally:
                await asyncio.sleep(0.001)
        def forget():
            for _ in range(3):
                next(portal.iterate(endless))
        for _ in range(40):
            portal = sync._Portal()
            threads = [threading.Thread(target=forget) for _ in range(6)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            portal.close()
        print("ended")
    """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("ended\n", "")


def test_ctrl_c_waits_for_cleanup() -> None:
    script = """
        import anyio, os, ramet.sync, signal, threading
        portal = ramet.sync._Portal()
        async def slow():
            threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            try:
                await anyio.sleep(60)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.3)
                    print("cleaned up", flush=True)
        try:
            portal.call(slow)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        portal.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == (b"cleaned up\ninterrupted\n", b"")


def test_iterators_end_fail_and_can_be_left() -> None:
    left: list[str] = []

    async def numbers(fail: bool) -> AsyncIterator[int]:
        try:
            for number in range(3):
                yield number
            if fail:
                raise NotFoundError("no more")
        finally:
            left.append("closed")

    portal = ramet.sync._Portal()
    try:
        assert list(portal.iterate(lambda: numbers(False))) == [0, 1, 2]
        failing = portal.iterate(lambda: numbers(True))
        assert [next(failing) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(NotFoundError):
            next(failing)
        iterator = portal.iterate(lambda: numbers(False))
        assert next(iterator) == 0
        iterator.close()  # type: ignore[attr-defined]
    finally:
        portal.close()
    assert left == ["closed"] * 3


@pytest.fixture
def host(home: Path) -> Iterator[ramet.sync.Host]:
    with ramet.sync.Host(home) as opened:
        yield opened
    assert_nothing_left(home)


@pytest.mark.vm
def test_the_whole_way(host: ramet.sync.Host) -> None:
    vm = host.run("builtin", memory="256M", name="warm")
    assert vm.exec("sh", "-c", "cat > /run/cache", stdin="hot").ok
    with vm.process("cat", stdin=True) as process:
        assert process.pid > 1
        process.write(b"through")
        process.close_stdin()
        assert b"".join(chunk.data for chunk in process.output()) == b"through"
        assert process.wait().exit_code == 0
    assert [instance.name for instance in host.list()] == ["warm"]
    snapshot = vm.snapshot("early", labels={"a": "b"})
    assert isinstance(snapshot, ramet.sync.Snapshot)
    with snapshot.fork(1) as early:
        assert early[0].exec("cat", "/run/cache").text == "hot"
    assert [snapshot.name for snapshot in host.snapshots("warm", labels={"a": "b"})] == ["early"]
    found = host.snapshot("warm/early")
    assert found.verify().ok
    found.remove()
    base = vm.template()
    with base.fork(2, require_shared=True) as forks:
        results = forks.exec("cat", "/run/cache")
        assert [result.text for result in results if isinstance(result, ramet.ExecResult)] == ["hot", "hot"]
        assert forks[0].receipt.memory.mode == "shared"
        assert isinstance(forks[1].keep(), ramet.sync.VM)
    assert {instance.name for instance in host.list()} == {"warm", "warm-2"}
    plain = base.fork(1)
    assert len(plain) == 1
    assert isinstance(plain[0], ramet.sync.VM)
    host.get("warm-2").remove(force=True)


@pytest.mark.vm
def test_forks_that_fail(warm_home: Path) -> None:
    with ramet.sync.Host(warm_home) as host, host.get("warm").fork(1, name="base") as (fork,):
        base = fork.template()
        os.truncate(base.directory / "vmstate", 100)
        with pytest.raises(ramet.RametError) as caught:
            base.fork(1)
        if isinstance(caught.value, ramet.ForkError):
            assert isinstance(caught.value, ramet.sync.ForkError)
            assert caught.value.forks == []
        assert {instance.name for instance in host.list()} == {"warm", "base"}


@pytest.mark.vm
def test_ctrl_c_during_a_boot_leaves_nothing(home: Path) -> None:
    script = f"""
        import ramet.sync
        with ramet.sync.Host({str(home)!r}) as host:
            print("open", flush=True)
            host.run("builtin")
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    while not living_in(home):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said.rstrip().endswith(b"KeyboardInterrupt")
    assert_nothing_left(home)
