"""KVM, and how this user comes to have it."""

from __future__ import annotations

import getpass
import grp
import os
from pathlib import Path

from ramet.host.doctor.finding import Finding
from ramet.host.kvm import KvmVerdict


def kvm_finding(verdict: KvmVerdict, device: str = "/dev/kvm") -> Finding:
    """The verdict on KVM, and how to get at it. Without it guests are emulated, so it is never false."""
    if verdict.status == "runs_linux":
        return Finding("kvm", True, verdict.detail)
    match verdict.status:
        case "absent":
            advice = "load kvm_intel or kvm_amd, turn virtualization on in the firmware, or use a metal host"
        case "no_permission":
            advice = _way_to(device)
        case "bare_metal_only":
            advice = "nothing helps on this machine: use a metal host, or one with nested virtualization"
        case _:
            advice = "see that no other hypervisor holds it, and that kvm_intel or kvm_amd is loaded"
    found = f"{verdict.status}: {verdict.detail}"
    return Finding("kvm", None, found, f"{advice}; until then guests are emulated (tcg), which is slower")


def _way_to(device: str) -> str:
    """How this user comes to be allowed to open `device`."""
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
