"""The drivers' contract, the main job and the benchmarks' guard on each release of QEMU."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from benchmarks.figures import Figure, compare

import ramet
from ramet.drivers.qemu.releases import READ_ONLY_SINCE
from ramet.drivers.versions import release as numbers_of
from tests.platform.qemu_releases.conftest import Get
from tests.platform.qemu_releases.inner import Inner, Ramet, counts, run_tests
from tests.platform.qemu_releases.packages import SUITES, Unpacked
from tests.side_by_side import tell

pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.timeout(1200)]

FORKS = 8
_NOT_QEMUS = "qemu saves no differences by itself"
_ROUNDS = 15
_MUCH_SLOWER = 2.5
"""A fork that waits for something that never comes takes ten times as long, and more."""


def is_read_only(release: Unpacked) -> bool:
    """Whether the kernel keeps that QEMU from writing to a mem-file."""
    return numbers_of(release.name) >= READ_ONLY_SINCE


def require_whole(found: Inner, *, least: int) -> None:
    """All were run but those that are of another driver's abilities, and none failed."""
    assert not found.failed, counts(found.failed)
    skipped = {name: reason for name, reason in found.skipped.items() if _NOT_QEMUS not in reason}
    assert not skipped, counts(skipped)
    assert len(found.passed) >= least, found.output


def test_contract(release: Unpacked) -> None:
    require_whole(run_tests(release, "tests/contract", only="qemu-builtin"), least=30)


def test_disks(release: Unpacked) -> None:
    """With the `qemu-img` and `qemu-io` of the same release as judges."""
    found = run_tests(release, "tests/vm/disks/test_qemu_disks.py", "tests/unit/disk/test_chains.py")
    require_whole(found, least=20)


def test_an_ordinary_user(release: Unpacked) -> None:
    """The mem-file is opened for reading where this QEMU can, also by its owner who isn't root."""
    found = run_tests(release, "tests/platform/not_root/test_main_job.py", only="share_are_isolated")
    require_whole(found, least=1)


def test_demo(release: Unpacked, home: Path) -> None:
    report = Ramet(home, release).json("demo", "--forks", str(FORKS))
    assert report["failed_checks"] == []
    receipts = [receipt["receipt"]["memory"] for receipt in report["forks"]]
    assert [receipt["mode"] for receipt in receipts] == ["shared"] * FORKS
    assert len({receipt["inode"] for receipt in receipts}) == 1
    enforced = {receipt["immutability"].startswith("enforced by the kernel") for receipt in receipts}
    assert enforced == {is_read_only(release)}


def test_doctor(release: Unpacked, home: Path) -> None:
    report = Ramet(home, release).json("doctor")
    checks = {check["name"]: check for check in report["checks"]}
    assert re.match(rf"{re.escape(release.name)}\.\d+ \(run\): ", checks["qemu"]["found"])
    assert ("opens the mem-file read-only" in checks["qemu"]["found"]) is is_read_only(release)
    kept = "qemu: enforced by the kernel"
    assert (kept in checks["immutability"]["found"]) is is_read_only(release)
    assert checks["immutability"]["ok"] is (True if is_read_only(release) else None)
    [driver] = [driver for driver in report["drivers"] if driver["name"] == "qemu"]
    assert driver["usable"] is True


@pytest.mark.alone
def test_guard(release: Unpacked) -> None:
    """Of forks against the floor, which loads a vmstate as this release wants it, too."""
    found = run_tests(release, "tests/benchmarks/test_guard.py", only="qemu")
    require_whole(found, least=2)
    for line in re.findall(r"^qemu: .* over the floor: .*$", found.output, re.MULTILINE):
        tell(f"QEMU {release.name}: {line}")


@pytest.mark.alone
@pytest.mark.anyio
async def test_what_a_fork_takes(get: Get, homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a ratio to the first release, a fork of each in turn."""
    hosts: dict[str, ramet.Host] = {}
    figures = {suite.name: Figure(what="fork", who=suite.name, unit="ms", values=[]) for suite in SUITES}
    bases: dict[str, ramet.VM] = {}
    try:
        for name in figures:
            monkeypatch.setenv("RAMET_QEMU", get(name).qemu)
            hosts[name] = await ramet.Host(homes / f"releases-{name}").__aenter__()
            vm = await hosts[name].run("builtin", driver="qemu", memory="256M")
            bases[name] = await vm.template()
            await (await bases[name].fork(1))[0].remove(force=True)
        for _ in range(_ROUNDS):
            for name, base in bases.items():
                began = time.perf_counter()
                async with base.fork(1):
                    figures[name].values.append(1000 * (time.perf_counter() - began))
    finally:
        for host in hosts.values():
            await host.__aexit__(None, None, None)
    first = SUITES[0].name
    for name, figure in figures.items():
        found = compare(f"fork on {name} over {first}", figure, figures[first])
        spread = f"{found.low:.2f} to {found.high:.2f}, {found.n} pairs"
        tell(f"QEMU {name}: a fork takes {found.ratio:.2f} times {first}'s ({spread})")
        assert found.low < _MUCH_SLOWER
