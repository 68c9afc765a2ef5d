"""Alive, dead, or can't be told from here: with real namespaces, and another boot of the machine."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec
import pytest

from ramet.errors import UnavailableError, UnseenError
from ramet.model.record import ProcessRef
from ramet.system import liveness, process_ref, process_search, processes
from ramet.system.liveness import Liveness
from ramet.system.machine import Boot, past_boots, this_boot
from tests.support.namespaces import PID_NAMESPACE, PID_NAMESPACE_ALONE, end, liveness_in, require, sleeper

OTHER_BOOT = "11111111-2222-3333-4444-555555555555"


def test_a_process_of_another_pid_namespace_is_neither_alive_nor_dead() -> None:
    require(*PID_NAMESPACE)
    with sleeper() as (process, child):
        assert liveness_in((), process) == "alive"
        assert liveness_in(PID_NAMESPACE, process) == "unknown"
        child.kill()
        child.wait()
        assert liveness_in((), process) == "dead"
        assert liveness_in(PID_NAMESPACE, process) == "unknown"


def test_where_proc_shows_the_namespace_above_that_tells_it() -> None:
    """`unshare --pid --fork` without `--mount-proc`: /proc has other pids than this process knows."""
    require(*PID_NAMESPACE_ALONE)
    with sleeper() as (process, child):
        assert liveness_in(PID_NAMESPACE_ALONE, process) == "alive"
        child.kill()
        child.wait()
        assert liveness_in(PID_NAMESPACE_ALONE, process) in {"dead", "unknown"}


@pytest.mark.parametrize("words", [PID_NAMESPACE, PID_NAMESPACE_ALONE])
def test_the_namespace_above_sees_a_process_by_its_own_name(words: tuple[str, ...]) -> None:
    require(*words)
    with sleeper(*words) as (process, _):
        assert process.pid == 1
        assert process.pid_namespace != process_ref.this_process().pid_namespace
        assert liveness.liveness(process) is Liveness.ALIVE
        assert liveness.local_pid(process) != 1
        assert liveness_in(PID_NAMESPACE, process) == "unknown", "a sibling doesn't see it"
        end(process)
        # In a container of its own this test's process can't see that all of them are gone.
        assert liveness.liveness(process) in {Liveness.DEAD, Liveness.UNKNOWN}


def test_a_pid_is_another_process_in_another_namespace() -> None:
    require(*PID_NAMESPACE)
    ours = process_ref.reference(os.getpid())
    with sleeper(*PID_NAMESPACE) as (process, _):
        assert not process_ref.is_same(ours, msgspec.structs.replace(process, started=ours.started))
        stranger = msgspec.structs.replace(process, pid=os.getpid(), started=ours.started)
        assert liveness.liveness(stranger) is not Liveness.ALIVE


def test_a_process_is_the_same_in_every_time_namespace() -> None:
    words = ("unshare", "--time", "--boottime", "100000", "--fork", "--kill-child")
    require(*words)
    with sleeper(*words) as (inside, _), sleeper() as (outside, _):
        assert liveness_in((), inside) == "alive"
        assert liveness_in(words, outside) == "alive"
        gone = msgspec.structs.replace(outside, started=outside.started - 100)
        assert liveness_in(words, gone) == "dead"


def test_a_tick_of_a_time_namespace_makes_no_other_process() -> None:
    """An offset that is no multiple of a tick: a start is rounded differently inside (time_namespaces(7))."""
    require("unshare", "--time", "--boottime", "100", "--fork")
    script = (
        "import ctypes, os, time, msgspec; from pathlib import Path; from ramet.system import process_ref;"
        "assert ctypes.CDLL(None).unshare(0x80) == 0;"  # CLONE_NEWTIME, linux/sched.h
        "Path('/proc/self/timens_offsets').write_text('boottime 100 5000000');"
        "told = lambda: os.write(1, msgspec.json.encode(process_ref.this_process()) + b'\\n');"
        "[time.sleep(0.003) or os.fork() or (told(), time.sleep(600), os._exit(0)) for _ in range(16)];"
        "time.sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert child.stdout is not None
        for _ in range(16):
            inside = msgspec.json.decode(child.stdout.readline(), type=ProcessRef)
            assert process_ref.is_same(inside, process_ref.reference(inside.pid)), inside
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate(timeout=60)


def test_what_could_not_be_looked_at_is_not_dead_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads have every descriptor in the middle of a look at all processes."""
    require(*PID_NAMESPACE)
    names = process_search.proc_names
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def names_and_no_descriptor_more() -> Iterator[str]:
        found = list(names())
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        return iter(found)

    with sleeper(*PID_NAMESPACE) as (process, _):
        monkeypatch.setattr(process_search, "_index", None)
        monkeypatch.setattr(process_search, "proc_names", names_and_no_descriptor_more)
        try:
            with pytest.raises(UnavailableError, match="can't be looked at"):
                liveness.liveness(process)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        monkeypatch.setattr(process_search, "proc_names", names)
        assert liveness.liveness(process) is Liveness.ALIVE


def test_what_proc_hides_from_this_user_is_not_dead(tmp_path: Path) -> None:
    """/proc mounted with hidepid=2 has no entry for other users' processes (proc(5))."""
    words = ("unshare", "--mount")
    require(*words)
    script = (
        "import os, sys, subprocess;"
        "subprocess.run(['mount', '-t', 'proc', '-o', 'hidepid=2', 'proc', '/proc'], check=True);"
        "import msgspec; from ramet.system import liveness;"
        "from ramet.model.record import ProcessRef; os.setgid(65534); os.setgroups([]); os.setuid(65534);"
        "print(liveness.liveness(msgspec.json.decode(sys.argv[1], type=ProcessRef)).value)"
    )
    with sleeper() as (process, _):
        told = msgspec.json.encode(process).decode()
        done = subprocess.run(
            [*words, sys.executable, "-c", script, told],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    if "mount" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.stdout.strip(), done.stderr) == ("unknown", "")


def test_another_boot_is_another_machines_unless_it_is_known_for_this_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_ref, "_past_boots", set())
    process = msgspec.structs.replace(process_ref.this_process(), boot_id=OTHER_BOOT)
    assert liveness.liveness(process) is Liveness.UNKNOWN
    assert "another machine" in (liveness.why_unseen(process) or "")
    process_ref.know_past_boots([OTHER_BOOT, process_ref.boot_id()])
    assert liveness.liveness(process) is Liveness.DEAD
    assert liveness.liveness(process_ref.this_process()) is Liveness.ALIVE


def test_a_boot_was_this_machines_if_it_has_its_id_and_was_over_before() -> None:
    now = this_boot()
    before = Boot(OTHER_BOOT, now.machine_id, now.booted_at_s - 1000)
    assert past_boots([before]) == {OTHER_BOOT}
    assert past_boots([before._replace(machine_id="another")]) == set()
    assert past_boots([before._replace(booted_at_s=now.booted_at_s)]) == set(), "a container's boot id"
    # A host and a container without a machine id have one kernel.
    assert past_boots([before._replace(machine_id=""), now, now._replace(machine_id="")]) == {OTHER_BOOT}
    assert past_boots([now]) == set()


@pytest.mark.timing
@pytest.mark.anyio
async def test_nothing_is_done_to_what_cannot_be_seen() -> None:
    process = msgspec.structs.replace(process_ref.this_process(), boot_id=OTHER_BOOT)
    with anyio.fail_after(10):
        for act in (processes.kill, processes.wait_ended):
            with pytest.raises(UnseenError, match="can't be seen from here"):
                await act(process)
    with pytest.raises(UnseenError):
        liveness.local_pid(process)
    with pytest.raises(UnseenError):
        processes.cpu_seconds(process)


def test_names_of_files_hold_a_process_whole() -> None:
    process = process_ref.this_process()
    assert process_ref.from_name(process_ref.as_name(process)) == process
    old = f"{process.pid}-{process.started}-{process.boot_id}"
    assert process_ref.from_name(old) == ProcessRef(process.pid, process.started, process.boot_id)
    for text in ("", "1-2", "1-2-3", f"{old}-", f"x{old}"):
        assert process_ref.from_name(text) is None


def test_no_source_takes_not_alive_for_dead() -> None:
    """Only `is_dead` allows anything to be undone, ended or removed."""
    import ramet

    sources = Path(ramet.__file__).parent
    taken = [
        f"{path.relative_to(sources)}: {line.strip()}"
        for path in sources.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"not (\w+\.)?is_alive\(", line)
    ]
    assert taken == []
