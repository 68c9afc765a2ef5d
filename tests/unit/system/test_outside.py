"""Outside programs are judged by their results: exit statuses get lost in other people's processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from ramet.errors import UnavailableError
from ramet.system import launching, outside, processes, spawn
from tests.conftest import living_in
from tests.support.shell import wait_until


@pytest.fixture
def sigchld_ignored() -> Iterator[None]:
    """As a program does that doesn't want zombies."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.fixture
def all_blocked() -> Iterator[None]:
    """As a program does that reads its signals with sigwait(3)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def sh(script: str, *, limit_s: float = 30, **options: object) -> outside.Outcome:
    return outside.run(["/bin/sh", "-c", script], limit_s=limit_s, **options)  # type: ignore[arg-type]


def test_output_and_status_are_kept() -> None:
    done = sh("echo out; echo one >&2; echo two >&2; echo three >&2; exit 7")
    assert (done.status, done.stdout, done.failed) == (7, b"out\n", True)
    assert done.last_words == "two / three"
    killed = sh("kill -9 $$")
    assert (killed.status, killed.failed) == (-signal.SIGKILL, True)


def test_a_status_that_is_thrown_away_is_no_status(sigchld_ignored: None) -> None:
    for script in ("exit 7", "sleep 0.2; exit 7", "kill -9 $$"):
        done = sh(f"echo out; {script}")
        assert (done.status, done.stdout, done.failed) == (None, b"out\n", False)
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN


def test_a_program_has_statuses_of_its_own_children(sigchld_ignored: None) -> None:
    assert sh("sh -c 'exit 3'; echo $?").stdout == b"3\n"


@pytest.mark.usefixtures("all_blocked")
def test_a_program_hears_signals(tmp_path: Path) -> None:
    words = ["grep", "SigBlk", "/proc/self/status"]  # a shell would unblock them itself
    assert outside.run(words, limit_s=30).stdout.split()[1] == b"0" * 16
    vmm = spawn.spawn(words, directory=tmp_path, log=tmp_path / "log")
    assert anyio.run(processes.wait_ended, vmm)
    blocked = int((tmp_path / "log").read_text().split()[1], 16)
    assert blocked == 1 << (signal.SIGXFSZ - 1)
    assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_vmm_that_ends_at_once_where_sigchld_is_ignored(sigchld_ignored: None, tmp_path: Path) -> None:
    """Either it is seen, or it is said that it has ended: nothing else."""
    for _ in range(20):
        with suppress(UnavailableError):
            process = spawn.spawn(["true"], directory=tmp_path, log=tmp_path / "log")
            assert anyio.run(processes.wait_ended, process)


@pytest.mark.timing
@pytest.mark.parametrize("ignored", [False, True])
def test_one_that_hangs_is_killed_with_its_group(tmp_path: Path, ignored: bool) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with pytest.raises(TimeoutError, match=r"/bin/sh didn't end within 0.3 s"):
            sh("sleep 60 & sleep 60; echo", limit_s=0.3, cwd=tmp_path)
        wait_until(lambda: living_in(tmp_path) == [])
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_it_leaves_running_holds_nobody_up(tmp_path: Path) -> None:
    done = sh("sleep 60 & echo $!", cwd=tmp_path)
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.status == 0


def test_output_is_bounded() -> None:
    done = sh("yes | head -c 5000000; yes n | head -c 5000000 >&2; echo end >&2", most_bytes=1000)
    assert (len(done.stdout), done.stdout[:4]) == (1000, b"y\ny\n")
    assert (len(done.stderr), done.stderr[-4:]) == (1000, b"end\n")


def test_it_reads_nothing_and_speaks_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    monkeypatch.setenv(spawn.OWNER_TAG, "/somewhere")
    assert sh(f'cat; echo "$LC_ALL:$LANGUAGE:${spawn.OWNER_TAG}"').stdout == b"C::\n"


def test_what_cannot_be_executed_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        outside.run([str(tmp_path / "nothing")], limit_s=1)
    assert caught.value.filename == str(tmp_path / "nothing")


def test_a_status_that_somebody_else_took_is_no_status() -> None:
    """A program that waits for every child of its, as supervisors do."""
    code = (
        "import os, threading, time\n"
        "def reap():\n"
        "    while True:\n"
        "        try: os.waitpid(-1, 0)\n"
        "        except ChildProcessError: time.sleep(0.001)\n"
        "threading.Thread(target=reap, daemon=True).start()\n"
        "from ramet.system import outside\n"
        "done = outside.run(['/bin/sh', '-c', 'echo out; sleep 0.3; exit 7'], limit_s=30)\n"
        "print(done.stdout, done.status in (7, None))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"b'out\\n' True\n"


@pytest.mark.timing
@pytest.mark.anyio
async def test_cancelling_kills_it_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with anyio.move_on_after(0.2) as scope:
        await outside.run_async(["/bin/sh", "-c", f"cd {tmp_path}; sleep 60 & sleep 60; echo"], limit_s=60)
    assert scope.cancelled_caught
    assert time.monotonic() - began < 30
    wait_until(lambda: living_in(tmp_path) == [])


@pytest.mark.anyio
async def test_errors_come_as_they_are() -> None:
    with pytest.raises(TimeoutError):
        await outside.run_async(["/bin/sleep", "60"], limit_s=0.1)
    with pytest.raises(FileNotFoundError):
        await outside.run_async(["/no/such/program"], limit_s=1)
    assert (await outside.run_async(["/bin/echo", "x"], limit_s=30)).stdout == b"x\n"


def test_what_ramet_sets_right_for_its_own_programs() -> None:
    def check(prepare: Callable[[], object]) -> bytes:
        code = (
            "import signal\nfrom ramet.system import launching\nlaunching.reset()\n"
            "print(signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL,"
            " signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
        )
        words = [sys.executable, "-c", code]
        return subprocess.run(words, capture_output=True, timeout=60, check=True, preexec_fn=prepare).stdout

    assert check(lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)) == b"True set()\n"
    assert check(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())) == b"True set()\n"
    assert launching.launched(["x"]) == ["x"], "nothing is paid where nothing is wrong"
