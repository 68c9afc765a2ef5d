"""doctor: what it looks at, what it says to do, how it ends, and that it leaves nothing."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

import ramet.sync
from ramet.api.doctor import doctor
from ramet.errors import UsageError
from ramet.system.doctor import home_findings, kvm_finding, limit_findings, ptrace_finding
from ramet.system.kvm import KvmVerdict
from tests.support.shell import Shell, run_command, wait_until

NAMES = {
    *("qemu", "immutability", "kvm", "kernel", "busybox", "agent", "mke2fs", "home", "hard-links"),
    "registries",
    *(
        "reflinks",
        "free-space",
        "changed-pages",
        "ptrace",
        "open-files",
        "processes",
        "cpus",
        "inotify",
        "memory",
        "overcommit",
    ),
}


def examined(ramet: Shell) -> dict[str, Any]:
    done = run_command(["doctor", "--json"], ramet.environment)
    report: dict[str, Any] = msgspec.json.decode(done.stdout)
    assert done.returncode == (0 if report["ok"] else 5)
    return report


def test_every_finding_is_complete(ramet: Shell) -> None:
    report = examined(ramet)
    assert {check["name"] for check in report["checks"]} >= NAMES
    for check in report["checks"]:
        assert check["found"]
        assert check["status"] == {True: "ok", None: "warning", False: "missing"}[check["ok"]]
        assert (check["detail"], check["hint"]) == (check["found"], check["advice"])
        assert check["ok"] is True or check["advice"], check


def test_people_get_every_finding_and_every_advice(ramet: Shell) -> None:
    report = examined(ramet)
    said = ramet("doctor", code=0 if report["ok"] else 5).stdout.decode()
    for check in report["checks"]:
        assert check["name"] in said
        assert check["advice"] is None or " ".join(check["advice"].split()) in said


@pytest.mark.deep
@pytest.mark.timing
@pytest.mark.alone
def test_it_is_quick_and_leaves_nothing(ramet: Shell) -> None:
    examined(ramet)  # the verdict on KVM is in the cache from now on
    before = sorted(ramet.home.rglob("*"))
    took = []
    for _ in range(3):
        began = time.monotonic()
        ramet.start("doctor", "--json").communicate(timeout=60)
        took.append(time.monotonic() - began)
    print(f"doctor: {min(took):.2f} s")
    assert min(took) < 5  # 0.6 s when nothing else runs
    assert sorted(ramet.home.rglob("*")) == before


def test_a_home_that_does_not_exist_is_tried_in_its_nearest_parent(tmp_path: Path) -> None:
    found = {check.name: check for check in home_findings(tmp_path / "a" / "b", tmp_path)}
    assert found["home"].ok
    assert found["hard-links"].ok
    assert list(tmp_path.iterdir()) == []


def test_a_filesystem_with_reflinks(xfs: Path, tmp_path: Path) -> None:
    found = {check.name: check for check in home_findings(xfs / "home", tmp_path)}
    assert found["reflinks"].ok
    assert found["hard-links"].ok
    assert found["home"].ok is None
    assert "one filesystem" in str(found["home"].advice)
    assert "xfs" in found["home"].found


def test_a_filesystem_without_space(full: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (full / "ballast").write_bytes(bytes(2 << 20))
    [home] = home_findings(full / "home", tmp_path)
    assert home.ok is False
    assert "No space left" in home.found


@pytest.mark.parametrize(
    ("scope", "ok", "advice"),
    [("1", None, "ptrace_scope=0"), ("2", False, "ptrace_scope=0"), ("3", False, "reboot")],
)
def test_what_yama_forbids_has_a_next_step(
    scope: str, ok: bool | None, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words alone: the refusal is Yama's own, which few kernels here have."""
    yama = tmp_path / "ptrace_scope"
    yama.write_text(f"{scope}\n")

    def refuse(pid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("ramet.system.doctor.ptrace._read_a_word", refuse)
    found = ptrace_finding(yama)
    assert found.ok is ok
    assert advice in str(found.advice)


@pytest.mark.timing
def test_the_trial_leaves_no_process() -> None:
    def children() -> set[str]:
        return {path.name for path in Path("/proc").iterdir() if path.name.isdigit() and _is_cat(path)}

    before = children()
    ptrace_finding()
    end = time.monotonic() + 5
    while left := children() - before:
        assert time.monotonic() < end, left
        time.sleep(0.01)


def _is_cat(entry: Path) -> bool:
    try:
        return (entry / "cmdline").read_bytes().startswith(b"cat\0/dev/fd/")
    except OSError:
        return False


def test_kvm_without_permission_names_the_group(tmp_path: Path) -> None:
    node = tmp_path / "kvm"
    node.touch()
    node.chmod(0o600)
    closed = kvm_finding(KvmVerdict("no_permission", "x", 0), str(node))
    assert f"sudo chmod 660 {node}" in str(closed.advice)
    if os.geteuid() == 0:
        os.chown(node, 0, 1)  # daemon, on every Linux
        node.chmod(0o660)
        grouped = kvm_finding(KvmVerdict("no_permission", "x", 0), str(node))
        assert "usermod -aG daemon" in str(grouped.advice)
        assert "chmod" not in str(grouped.advice)


def test_limits_are_all_there() -> None:
    assert [check.name for check in limit_findings()] == [
        "open-files",
        "processes",
        "cpus",
        "inotify",
        "memory",
        "overcommit",
    ]


@pytest.mark.anyio
async def test_the_library_has_the_same_report(ramet: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_HOME", str(ramet.home / "another"))
    report = examined(ramet)
    same = msgspec.to_builtins(await doctor(ramet.home))
    assert [check["name"] for check in same["checks"]] == [check["name"] for check in report["checks"]]
    assert (same["ok"], same["drivers"]) == (report["ok"], report["drivers"])
    [home] = [check for check in same["checks"] if check["name"] == "home"]
    assert home in report["checks"]
    assert not (ramet.home / "another").exists()


@pytest.mark.timing
def test_plain_code_has_it_too_and_no_thread_stays(tmp_path: Path) -> None:
    before = threading.active_count()
    report = ramet.sync.doctor(tmp_path)
    assert {check.name for check in report.checks} >= NAMES
    assert list(tmp_path.iterdir()) == []
    # anyio's worker ends a moment after its event loop.
    wait_until(lambda: threading.active_count() <= before)


@pytest.mark.anyio
async def test_a_home_that_is_no_path_is_refused() -> None:
    with pytest.raises(UsageError, match="home of doctor"):
        await doctor(3)  # type: ignore[arg-type]
