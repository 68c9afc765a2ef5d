"""What is spawned is known at once: a search in the next moment finds it, also when who spawned it is
dead.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ramet.system import liveness, process_ref, processes, rlimits, spawn


@pytest.mark.slow
def test_a_spawned_process_bears_its_mark_when_spawn_returns(tmp_path: Path) -> None:
    """Popen returns while the child is still within execve(2), where it has no environment for a moment."""
    for _ in range(100):
        process = spawn.spawn(["sleep", "60"], directory=tmp_path, log=tmp_path / "vmm.log")
        try:
            assert spawn.spawned_in(tmp_path) == [process]
        finally:
            os.kill(process.pid, signal.SIGKILL)
            while liveness.is_alive(process):
                pass  # it takes microseconds to die


@pytest.mark.slow
def test_it_is_found_in_the_middle_of_execve(tmp_path: Path) -> None:
    """As when ramet is killed the moment that Popen has returned, and the next one deletes what is left."""
    for _ in range(100):
        tag = {spawn.OWNER_TAG: str(tmp_path)}
        child = subprocess.Popen(
            ["sleep", "60"], cwd=tmp_path, env={**os.environ, **tag}, stdin=subprocess.DEVNULL
        )
        try:
            found = spawn.spawned_in(tmp_path)
            assert [process.pid for process in found] == [child.pid]
        finally:
            child.kill()
            child.wait()


def test_a_process_that_has_ended_or_has_no_environment_holds_nobody_up(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    bare = subprocess.Popen(["sleep", "60"], env={})
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert spawn.spawned_in(tmp_path) == []
    finally:
        bare.kill()
        bare.wait()
        ended.wait()


@pytest.mark.timing
def test_the_exit_status_of_somebody_elses_child_stays_his(tmp_path: Path) -> None:
    """A program that has a Host and starts `ramet` as well wants to know how that ended."""
    with subprocess.Popen(["sh", "-c", "exit 7"]) as child:
        process = process_ref.reference(child.pid)
        deadline_s = time.monotonic() + 10
        while liveness.is_alive(process):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        assert child.wait() == 7


@pytest.mark.anyio
async def test_a_child_of_ours_leaves_no_zombie(tmp_path: Path) -> None:
    process = spawn.spawn(["true"], directory=tmp_path, log=tmp_path / "log")
    assert await processes.wait_ended(process, timeout_s=10)
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_child_whose_limits_cannot_be_set_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a set-uid wrapper. Nobody would know of it, as spawn has returned no process."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(rlimits, "impose", refuse)
    with pytest.raises(PermissionError):
        spawn.spawn(["sleep", "60"], directory=tmp_path, log=tmp_path / "log")
    assert spawn.spawned_in(tmp_path) == []


@pytest.mark.anyio
async def test_standard_error_may_have_a_separate_log(tmp_path: Path) -> None:
    words = ["sh", "-c", "echo out; echo wrong >&2"]
    for errors, texts in ((None, ["out\nwrong\n"]), (tmp_path / "errors", ["out\n", "wrong\n"])):
        log = tmp_path / f"log-{errors is None}"
        process = spawn.spawn(words, directory=tmp_path, log=log, errors=errors)
        await processes.wait_ended(process, timeout_s=20)
        assert [path.read_text() for path in (log, errors) if path is not None] == texts


def test_a_log_that_cannot_be_opened_leaks_no_descriptor(tmp_path: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(OSError, match="No such file"):
        spawn.spawn(["true"], directory=tmp_path, log=tmp_path / "log", errors=tmp_path / "none" / "errors")
    assert sorted(Path("/proc/self/fd").iterdir()) == before
