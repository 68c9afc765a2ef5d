"""KVM, and how this user comes to have it."""

from __future__ import annotations

import getpass
import grp
import os
from collections.abc import Sequence
from pathlib import Path

from ramet.system.doctor.finding import Finding
from ramet.system.kvm import KvmVerdict
from ramet.system.kvm_kernels import Trial
from ramet.system.kvm_kind import PVM, UNKNOWN


def kvm_finding(verdict: KvmVerdict, device: str = "/dev/kvm") -> Finding:
    """Describe the verdict on KVM, and the remedy.

    Guests are emulated without KVM, so `ok` is never false.
    """
    if verdict.status == "runs_linux":
        return Finding("kvm", True, verdict.detail)
    match verdict.status:
        case "absent":
            advice = "load kvm_intel or kvm_amd, turn virtualization on in the firmware, or use a metal host"
        case "no_permission":
            advice = _way_to(device)
        case "bare_metal_only" if verdict.kind == PVM:
            advice = (
                "this is PVM, a KVM for machines without nested virtualization: it runs guest kernels that"
                " were built for it (CONFIG_PVM_GUEST). One that RAMET_KERNEL names is tried with `--driver"
                " firecracker` or `--accel kvm`"
            )
        case "bare_metal_only":
            advice = (
                "use a metal host, or one with nested virtualization; a guest kernel that was built for this"
                " KVM, if RAMET_KERNEL names it, is tried with `--driver firecracker` or `--accel kvm`"
            )
        case _:
            advice = "see that no other hypervisor holds it, and that kvm_intel or kvm_amd is loaded"
    kind = "" if verdict.kind == UNKNOWN else f" ({verdict.kind})"
    fact = f"{verdict.status}{kind}: {verdict.detail}"
    return Finding("kvm", None, fact, f"{advice}; until then guests are emulated (tcg), which is slower")


def kernels_finding(trials: Sequence[Trial]) -> Finding | None:
    """List the kernels that were tried on a KVM that doesn't run a stock kernel; None when none was."""
    if not trials:
        return None
    listing = "; ".join(
        f"{trial.kernel_version} ({trial.kernel_digest[:12]}) with {trial.driver}:"
        f" {'runs' if trial.runs else trial.detail}"
        for trial in trials
    )
    if all(trial.runs for trial in trials):
        return Finding("kvm-kernels", True, listing)
    advice = "what doesn't run isn't tried again until this machine boots: RAMET_KERNEL names another kernel"
    return Finding("kvm-kernels", None, listing, advice)


def _way_to(device: str) -> str:
    """Return the advice by which this user may open `device`."""
    node = Path(device).stat()
    try:
        group = grp.getgrgid(node.st_gid).gr_name
    except KeyError:
        group = str(node.st_gid)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.geteuid())
    if node.st_gid != 0 and node.st_mode & 0o060 == 0o060:
        return f"join the group {group}: `sudo usermod -aG {group} {user}`, then log in again"
    return (
        f"its mode is {node.st_mode & 0o777:04o}, its group {group}: `sudo chgrp kvm {device}`,"
        f" `sudo chmod 660 {device}` (for good: a udev rule),"
        f" then join the group: `sudo usermod -aG kvm {user}`"
    )
