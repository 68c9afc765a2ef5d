"""The tightest limit decides: of the machine, of a cgroup, of its parents; v1, v2, and both side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ramet.system import cgroups
from ramet.units import GIB, KIB, MIB
from tests.support.cgroup_v1 import inside, v1_cgroup

MEMINFO = "MemTotal: 33554432 kB\nMemFree: 1 kB\nMemAvailable: 20971520 kB\n"


class Machine:
    """A /proc and the cgroup filesystems that its mountinfo speaks of."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(MEMINFO)
        (self.proc / "self/mountinfo").write_text("")

    def membership(self, text: str) -> None:
        (self.proc / "self/cgroup").write_text(text)

    def mount(self, kind: str, at: str, options: str, root: str = "/") -> Path:
        place = self.root / at
        place.mkdir(parents=True, exist_ok=True)
        escaped = str(place).replace(" ", "\\040")
        line = f"31 24 0:27 {root} {escaped} rw,nosuid shared:9 - {kind} {kind} {options}\n"
        with (self.proc / "self/mountinfo").open("a") as file:
            file.write("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + line)
        return place

    def write(self, place: Path, **values: object) -> None:
        place.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (place / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "a machine")


def test_without_cgroups_it_is_the_machines(machine: Machine) -> None:
    assert cgroups.memory(machine.proc) == cgroups.Memory(32 * GIB, 20 * GIB, None)
    machine.membership("0::/user.slice\n")
    assert cgroups.memory(machine.proc) == cgroups.Memory(32 * GIB, 20 * GIB, None)
    assert cgroups.processes_left(machine.proc) is None
    assert cgroups.cpu_quota(machine.proc) is None


def test_v2_with_a_parent_that_is_tighter(machine: Machine) -> None:
    top = machine.mount("cgroup2", "sys/fs/cgroup", "rw,nsdelegate")
    machine.membership("0::/ci.slice/job.scope\n")
    job, ci = top / "ci.slice/job.scope", top / "ci.slice"
    stat = "anon 5\ninactive_file 104857600\nactive_file 7"
    machine.write(job, memory__max="max", memory__high="max", memory__current=300 * MIB, pids__max="max")
    machine.write(ci, memory__max=700 * MIB, memory__current=600 * MIB, memory__stat=stat)
    machine.write(ci, pids__max=100, pids__current=60, cpu__max="150000 100000")
    machine.write(job, cpu__max="max 100000")
    assert cgroups.memory(machine.proc) == cgroups.Memory(700 * MIB, 200 * MIB, ci)
    assert cgroups.processes_left(machine.proc) == cgroups.Room(40, 100, ci)
    assert cgroups.cpu_quota(machine.proc) == (1.5, ci)


def test_v2_memory_high_counts_as_a_limit(machine: Machine) -> None:
    top = machine.mount("cgroup2", "sys/fs/cgroup", "rw")
    machine.membership("0::/box\n")
    machine.write(
        top / "box", memory__max=GIB, memory__high=512 * MIB, memory__current=600 * MIB, memory__stat="x"
    )
    assert cgroups.memory(machine.proc) == cgroups.Memory(512 * MIB, 0, top / "box")


def test_v2_in_a_container_that_sees_its_own_cgroup_as_the_top(machine: Machine) -> None:
    top = machine.mount("cgroup2", "sys/fs/cgroup", "ro")
    machine.membership("0::/\n")
    machine.write(top, memory__max=2 * GIB, memory__current=GIB, memory__stat="inactive_file 0")
    assert cgroups.memory(machine.proc) == cgroups.Memory(2 * GIB, GIB, top)


def test_v2_of_a_process_outside_of_its_namespaces_top(machine: Machine) -> None:
    """`/../other`: what is mounted says nothing of it but the top; the top's parents aren't looked for."""
    top = machine.mount("cgroup2", "sys/fs/cgroup", "rw")
    machine.membership("0::/../../other\n")
    machine.write(top, memory__max=2 * GIB, memory__current=0)
    machine.write(machine.root / "sys/other", memory__max=1)
    assert cgroups.memory(machine.proc).total_bytes == 2 * GIB


def test_v1_in_a_container_whose_mount_begins_at_its_own_cgroup(machine: Machine) -> None:
    top = machine.mount("cgroup", "sys/fs/cgroup/memory", "rw,memory", root="/docker/0123")
    machine.membership("9:name=systemd:/docker/0123\n4:memory:/docker/0123\n0::/docker/0123\n")
    stat = f"cache 1\nhierarchical_memory_limit {600 * MIB}\ntotal_inactive_file {10 * MIB}"
    machine.write(top, memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=500 * MIB)
    machine.write(top, memory__stat=stat)
    assert cgroups.memory(machine.proc) == cgroups.Memory(600 * MIB, 110 * MIB, top)


def test_hybrid_each_controller_is_read_where_it_is(machine: Machine) -> None:
    machine.mount("cgroup2", "sys/fs/cgroup/unified", "rw")
    memory = machine.mount("cgroup", "elsewhere/memory", "rw,memory")
    pids = machine.mount("cgroup", "sys/fs/cgroup/pids", "rw,pids")
    cpu = machine.mount("cgroup", "sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct")
    machine.membership("8:pids:/job\n4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n")
    machine.write(memory / "job", memory__limit_in_bytes=GIB, memory__usage_in_bytes=0, memory__stat="")
    machine.write(pids / "job", pids__max=64, pids__current=70)
    machine.write(cpu / "job", cpu__cfs_quota_us=50000, cpu__cfs_period_us=100000)
    machine.write(cpu, cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert cgroups.memory(machine.proc) == cgroups.Memory(GIB, GIB, memory / "job")
    assert cgroups.processes_left(machine.proc) == cgroups.Room(0, 64, pids / "job")
    assert cgroups.cpu_quota(machine.proc) == (0.5, cpu / "job")


@pytest.mark.parametrize(
    ("mountinfo", "membership"),
    [
        ("garbage\n- - -\n1 2 3\n", "0::/x\n4:memory:/x\n"),
        ("31 24 0:27 / /nowhere rw - cgroup2 cgroup2 rw\n", "0::/x\n"),
        ("31 24 0:27 / /nowhere rw - cgroup2 cgroup2 rw\n", "\n:\n::\n0:\nx\n"),
    ],
)
def test_what_cant_be_read_is_no_limit(machine: Machine, mountinfo: str, membership: str) -> None:
    (machine.proc / "self/mountinfo").write_text(mountinfo)
    machine.membership(membership)
    assert cgroups.memory(machine.proc).limited_by is None
    assert cgroups.processes_left(machine.proc) is None
    assert cgroups.cpu_quota(machine.proc) is None


@pytest.mark.parametrize("content", ["", "max", "-1", "12 x", "\u00b2", "9" * 40, "\x00\xff"])
def test_odd_files_are_no_limit(machine: Machine, content: str) -> None:
    top = machine.mount("cgroup2", "sys/fs/cgroup", "rw")
    machine.membership("0::/\n")
    machine.write(top, memory__max=content, memory__current=content, memory__stat=content, cpu__max=content)
    machine.write(top, pids__max=content, pids__current="7")
    assert cgroups.memory(machine.proc).total_bytes == 32 * GIB
    cgroups.processes_left(machine.proc)
    assert cgroups.cpu_quota(machine.proc) is None


def ask(place: Path, code: str) -> Any:
    """What Python says that runs `code` in that cgroup."""
    script = f"import json; from ramet.system import cgroups; print(json.dumps({code}))"
    done = subprocess.run(
        inside(place, sys.executable, "-c", script), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_real_memory_cgroup() -> None:
    with v1_cgroup("memory", limit_in_bytes=300 * MIB) as place:
        total, available, by = ask(place, "[*cgroups.memory()[:2], str(cgroups.memory().limited_by)]")
        assert (total, by) == (300 * MIB, str(place))
        assert 100 * MIB < available < 300 * MIB
        filled = "(lambda held: cgroups.memory().available_bytes)(b'x' * (150 << 20))"
        assert available - ask(place, filled) > 100 * MIB
        # A child without a limit of its own has its parent's.
        child = place / "child"
        child.mkdir()
        try:
            assert ask(child, "cgroups.memory().total_bytes") == 300 * MIB
        finally:
            child.rmdir()


def test_a_real_pids_cgroup() -> None:
    with v1_cgroup("pids", max=50) as place:
        assert ask(place, "cgroups.processes_left()[:2]") == [49, 50]


def test_a_real_cpu_quota_and_set() -> None:
    code = "[cgroups.cpu_quota()[0], cgroups.usable_cpus()]"
    with v1_cgroup("cpu", cfs_period_us=100_000, cfs_quota_us=40_000) as place:
        assert ask(place, code) == [0.4, 1]
    script = (
        "import os; os.sched_setaffinity(0, {0});"
        " from ramet.engine.fork.call import at_once; print(at_once())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
    assert int(done.stdout) == 3


def test_the_machine_the_tests_run_on() -> None:
    found = cgroups.memory()
    assert 64 * MIB < found.available_bytes <= found.total_bytes < 1 << 60
    assert found.total_bytes % KIB == 0
    assert cgroups.usable_cpus() >= 1
