"""What came of kernels that were tried: kept for their content, a driver, and this KVM until the next boot.

A regular file stands for the device: what is tested is the record, not KVM.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramet.system import kvm_kernels
from ramet.system.kvm import cache_key
from ramet.system.kvm_kernels import find_trial, note_trial, trials


@pytest.fixture(autouse=True)
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever is there instead of `/dev/kvm`."""
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(kvm_kernels, "cache_key", lambda _: cache_key(str(path)))
    return path


def note(cache: Path, *, digest: str = "aa", driver: str = "firecracker", runs: bool = False) -> None:
    made = note_trial(
        cache, driver=driver, kernel_version="6.1", kernel_digest=digest, runs=runs, detail=f"{digest} {runs}"
    )
    assert (made.kernel_digest, made.runs) == (digest, runs)


def test_a_trial_is_its_kernels_and_its_drivers(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert trials(cache) == []
    note(cache)
    note(cache, digest="bb", runs=True)
    for driver, digest, runs in (("firecracker", "aa", False), ("firecracker", "bb", True)):
        found = find_trial(cache, driver, digest)
        assert found is not None
        assert (found.runs, found.detail) == (runs, f"{digest} {runs}")
    assert find_trial(cache, "qemu", "aa") is None
    assert find_trial(cache, "firecracker", "cc") is None
    note(cache, runs=True)
    assert [(trial.kernel_digest, trial.runs) for trial in trials(cache)] == [("bb", True), ("aa", True)]
    assert [path.name for path in cache.iterdir()] == [f"kvm-kernels-{os.geteuid()}.json"]


def test_another_kvm_or_boot_has_trials_of_its_own(tmp_path: Path, device: Path) -> None:
    cache = tmp_path / "cache"
    note(cache)
    device.rename(device.with_name("old"))
    device.touch()
    assert trials(cache) == []
    note(cache, digest="bb")
    [kept] = cache.iterdir()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert [trial.kernel_digest for trial in trials(cache)] == ["bb"]
    kept.write_text(kept.read_text().replace(boot, "another"))
    assert trials(cache) == []
    device.unlink()
    assert trials(cache) == []
    note(cache, digest="cc")  # by then it can't be opened: that is nobody's
    assert trials(cache) == []


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b'[{"driver": 1}]', b"[" * 100_000])
def test_a_damaged_record_costs_another_trial(tmp_path: Path, damage: bytes) -> None:
    note(tmp_path)
    file = tmp_path / f"kvm-kernels-{os.geteuid()}.json"
    file.write_bytes(damage)
    assert trials(tmp_path) == []
    note(tmp_path)
    assert len(trials(tmp_path)) == 1


def test_what_cant_be_kept_is_returned_all_the_same(tmp_path: Path) -> None:
    note(tmp_path / "kvm" / "below a file")
    assert trials(tmp_path / "kvm" / "below a file") == []


def test_not_more_than_some_are_kept(tmp_path: Path) -> None:
    for number in range(kvm_kernels._MOST + 3):
        note(tmp_path, digest=str(number))
    assert len(trials(tmp_path)) == kvm_kernels._MOST
    assert find_trial(tmp_path, "firecracker", "0") is None
