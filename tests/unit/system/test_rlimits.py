"""The limits that a long-living process starts with: its own, whatever its caller has, or a refusal."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ramet.system import rlimits
from ramet.units import GIB, MIB

_SCRIPT = r"""
import json, os, resource, signal, sys, time
from pathlib import Path
from ramet.errors import RametError; from ramet.system import spawn as spawning
from ramet.system import rlimits
if len(sys.argv) > 2:
    os.setgid(65534)
    os.setuid(65534)
needs = rlimits.Needs(file_bytes=64 << 20, mapped_bytes=256 << 20)
place = Path(sys.argv[1])
try:
    found = spawning.spawn(["sleep", "60"], directory=place, log=place / "log", needs=needs)
except RametError as error:
    print(json.dumps({"error": error.message, "hint": error.hint, "code": error.exit_code}))
else:
    while Path(f"/proc/{found.pid}/comm").read_text() != "sleep\n":
        time.sleep(0.01)  # a small program in between may set some of them
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    umask = next(x for x in Path(f"/proc/{found.pid}/status").read_text().splitlines() if "Umask" in x)
    limits = {name: resource.prlimit(found.pid, getattr(resource, name)) for name in names}
    os.kill(found.pid, signal.SIGKILL)
    print(json.dumps({**limits, "umask": umask.split()[1]}))
"""


def spawned(directory: Path, *limits: str, as_nobody: bool = False) -> dict[str, Any]:
    """The limits of a process that `spawn` starts in a process with those limits, or its error."""
    done = subprocess.run(
        ["prlimit", *limits, sys.executable, "-c", _SCRIPT, str(directory), *(["nobody"] * as_nobody)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def open_to_all(tmp_path: Path) -> Path:
    """A directory for whoever it is, on the way to which everybody may pass."""
    place = tmp_path / "place"
    place.mkdir()
    for directory in (place, *place.parents):
        if directory.stat().st_uid == os.geteuid() and directory.is_relative_to("/tmp"):
            directory.chmod(0o777 if directory != Path("/tmp") else 0o1777)
    return place


def may_raise_hard_limits() -> bool:
    """Whether this user has CAP_SYS_RESOURCE."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> 24 & 1)  # CAP_SYS_RESOURCE, linux/capability.h


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_what_would_hurt_is_lifted_where_it_may_be(open_to_all: Path, kind: str) -> None:
    """Soft limits as `ulimit -S` sets them, and hard ones as `ulimit` does."""
    if kind == "hard" and not may_raise_hard_limits():
        pytest.skip("this user may raise no hard limit (CAP_SYS_RESOURCE)")
    end = ":" if kind == "soft" else ""
    small = {"fsize": 1 << 20, "as": 1 << 30, "data": 1 << 29, "cpu": 100, "stack": 1 << 19, "core": 1 << 20}
    limits = [f"--{name}={value}{end}" for name, value in small.items()]
    found = spawned(open_to_all, *limits, "--nproc=5000:6000", "--memlock=4096:8192")
    assert found["RLIMIT_FSIZE"][0] == 64 * MIB, "as much as its disk needs, and no more"
    for name in ("RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_CPU"):
        assert found[name][0] == rlimits.INFINITE, name
    assert found["RLIMIT_STACK"][0] == 8 * MIB
    assert found["RLIMIT_CORE"][0] == 0, "no guest RAM in a core file"
    assert found["RLIMIT_NPROC"][0] == 6000
    assert found["RLIMIT_MEMLOCK"][0] == 8192
    assert found["umask"] == "0077"


@needs_root
@pytest.mark.parametrize(
    ("limit", "option", "name"),
    [
        (f"--fsize={1 << 20}", "ulimit -f", "RLIMIT_FSIZE"),
        (f"--as={240 << 20}", "ulimit -v", "RLIMIT_AS"),
        (f"--data={100 << 20}", "ulimit -d", "RLIMIT_DATA"),
        ("--cpu=20", "ulimit -t", "RLIMIT_CPU"),
        (f"--stack={1 << 19}", "ulimit -s", "RLIMIT_STACK"),
    ],
)
def test_a_hard_limit_that_may_not_be_raised_is_refused_by_name(
    open_to_all: Path, limit: str, option: str, name: str
) -> None:
    found = spawned(open_to_all, limit, as_nobody=True)
    assert found["code"] == 5
    assert name in found["error"]
    assert f"`{option} unlimited`" in found["hint"]
    assert "MiB" in found["error"] or " s " in found["error"]


@needs_root
def test_what_is_enough_is_left_as_it_is(open_to_all: Path) -> None:
    enough = [f"--fsize={GIB}", f"--as={4 * GIB}", "--cpu=100000", f"--stack={16 * MIB}:"]
    found = spawned(open_to_all, *enough, as_nobody=True)
    assert found["RLIMIT_FSIZE"] == [64 * MIB, GIB]
    assert found["RLIMIT_AS"] == [4 * GIB, 4 * GIB]
    assert found["RLIMIT_CPU"] == [100000, 100000]
    assert found["RLIMIT_STACK"][0] == 16 * MIB


def test_every_limit_of_this_kernel_has_a_rule_or_a_reason() -> None:
    """A limit that nobody has thought of yet fails here."""
    with_reason = {"RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RSS", "RLIMIT_LOCKS"}
    numbers = {rule.number for rule in rlimits._RULES}
    known = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    aliases = {"RLIMIT_OFILE"}
    for name, number in known.items():
        assert number in numbers or name in with_reason | aliases, name
        assert rlimits.__doc__ is not None
        assert name in aliases or name.removeprefix("RLIMIT_") in rlimits.__doc__
    lines = Path("/proc/self/limits").read_text().splitlines()[1:]
    assert len(lines) == len(numbers) + len(with_reason), "the kernel has others"


def test_an_ordinary_process_has_its_files_limited_and_nothing_is_launched_in_between() -> None:
    changed = rlimits.settings(rlimits.Needs(file_bytes=MIB))
    assert resource.RLIMIT_FSIZE in {setting.number for setting in changed}
    assert list(rlimits.statements(changed)) == []


def test_the_hint_for_a_file_too_large_names_the_limit_that_is_why(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ramet.errors import FilesystemError\n"
        "from ramet.system.publishing import write_durably\n"
        "try: write_durably(Path(sys.argv[1]), bytes(2 << 20))\n"
        "except FilesystemError as error: print(error.message, '|', error.hint)\n"
    )
    done = subprocess.run(
        ["prlimit", f"--fsize={MIB}", sys.executable, "-c", script, str(tmp_path / "file")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "File too large" in done.stdout
    assert "ulimit -f unlimited" in done.stdout
    assert list(tmp_path.iterdir()) == [], "and nothing is left"
