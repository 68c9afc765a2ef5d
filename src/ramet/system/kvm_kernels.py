"""Trials of kernels on this machine's KVM, and their results.

Even if the check (`kvm`) says that a stock kernel doesn't run, a kernel that was built for this KVM may. Only
booting it tells. The result holds for that kernel's content, that driver and that KVM, until the machine
boots again; a cache that can't be read or written only costs another trial.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from ramet.errors import FilesystemError
from ramet.system import kvm_probe
from ramet.system.kvm import cache_key
from ramet.system.kvm_probe import ProbeError
from ramet.system.publishing import write_durably

_MOST = 64


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The boot of a kernel with a driver: whether its guest answered, and if not what happened instead."""

    driver: str
    kernel_version: str
    kernel_digest: str
    runs: bool
    detail: str
    key: str
    """Everything else that the result depends on."""


def trials(cache_dir: Path, *, device: str = kvm_probe.DEVICE) -> list[Trial]:
    """List the trials on this KVM since the machine booted; empty if the device can't be opened."""
    try:
        key = cache_key(device)
    except ProbeError:
        return []
    return [trial for trial in _read(_file(cache_dir)) if trial.key == key]


def find_trial(cache_dir: Path, driver: str, kernel_digest: str) -> Trial | None:
    """Return the trial of that kernel with that driver, if there was one."""
    known = trials(cache_dir)
    return next(
        (trial for trial in known if (trial.driver, trial.kernel_digest) == (driver, kernel_digest)), None
    )


def note_trial(
    cache_dir: Path,
    *,
    driver: str,
    kernel_version: str,
    kernel_digest: str,
    runs: bool,
    detail: str,
    device: str = kvm_probe.DEVICE,
) -> Trial:
    """Keep the result of a trial, in place of an earlier result, as far as it can be kept."""
    try:
        key = cache_key(device)
    except ProbeError:
        key = ""  # no KVM's
    kept = [
        trial
        for trial in trials(cache_dir, device=device)
        if (trial.driver, trial.kernel_digest) != (driver, kernel_digest)
    ]
    made = Trial(
        driver=driver,
        kernel_version=kernel_version,
        kernel_digest=kernel_digest,
        runs=runs,
        detail=detail,
        key=key,
    )
    kept.append(made)
    with suppress(OSError, FilesystemError):  # a cache: the kernel is tried again
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(_file(cache_dir), msgspec.json.encode(kept[-_MOST:]))
    return made


def _file(cache_dir: Path) -> Path:
    return cache_dir / f"kvm-kernels-{os.geteuid()}.json"


def _read(file: Path) -> list[Trial]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Trial])
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return []
