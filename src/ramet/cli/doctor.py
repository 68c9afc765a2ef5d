"""doctor: what this machine can do, and why not.

`ramet.host.doctor` tries the machine; what drivers, images and the memory plane know is put beside it here.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from ramet import config
from ramet.cli import calling, output
from ramet.cli.options import Json
from ramet.errors import RametError, UnavailableError

if TYPE_CHECKING:
    from ramet.cli.shapes import Check, DoctorReport, DriverReport
    from ramet.host.doctor import Finding
    from ramet.host.kvm import KvmVerdict

_WORDS: Final[dict[bool | None, Literal["ok", "warning", "missing"]]] = {
    True: "ok",
    None: "warning",
    False: "missing",
}
_MARKS: Final = {"ok": "ok", "warning": "!", "missing": "missing"}
_EVERY_GUEST_NEEDS: Final = frozenset(
    {"kernel", "busybox", "agent", "home", "free-space", "open-files", "processes"}
)
_NEWER_IS_QUICKER: Final = "Linux 6.7 lists them in about a millisecond; older kernels take some tens"


def doctor(json: Json = False) -> None:
    """Say what this machine can do, and why not. Exit code 5 when no driver can run a guest."""

    async def body() -> int:
        report = await examine()
        if json:
            output.emit(report)
        else:
            _show(report)
        return 0 if report.ok else UnavailableError.exit_code

    calling.call(body, json=json)


async def examine() -> DoctorReport:
    """Look at everything; nothing is changed but the cached verdict on KVM."""
    from ramet.cli.shapes import DoctorReport
    from ramet.host import doctor as host
    from ramet.host.kvm import kvm_verdict

    cache = config.cache_directory()
    verdict = await kvm_verdict(cache)
    machine = [
        host.kvm_finding(verdict),
        *_parts(),
        *host.home_findings(config.home_directory(), cache),
        _page_scan(),
        host.ptrace_finding(),
        *host.limit_findings(),
    ]
    lacking = [one.found for one in machine if one.ok is False and one.name in _EVERY_GUEST_NEEDS]
    qemu, by_qemu = await _qemu("kvm" if verdict.status == "runs_linux" else "tcg", lacking)
    firecracker, by_firecracker = await _firecracker(verdict, lacking)
    drivers = [by_firecracker, by_qemu]
    checks = [_check(one) for one in (*firecracker, *qemu, *machine)]
    return DoctorReport(ok=any(one.usable for one in drivers), drivers=drivers, checks=checks)


def _check(finding: Finding) -> Check:
    from ramet.cli.shapes import Check

    return Check(
        name=finding.name,
        ok=finding.ok,
        found=finding.found,
        advice=finding.advice,
        status=_WORDS[finding.ok],
        detail=finding.found,
        hint=finding.advice,
    )


def _parts() -> Iterable[Finding]:
    """What guests are made of."""
    from ramet.guest.agent_binary import agent_path
    from ramet.host.doctor import Finding
    from ramet.images.builtin import find_busybox
    from ramet.images.kernel import find_kernel

    def kernel() -> str:
        found = find_kernel()
        return f"{found.version} ({found.source}: {found.vmlinuz})"

    finders: dict[str, Callable[[], str]] = {
        "kernel": kernel,
        "busybox": lambda: str(find_busybox()),
        "agent": lambda: str(agent_path()),
    }
    for name, find in finders.items():
        try:
            yield Finding(name, True, find())
        except RametError as error:
            yield Finding(name, False, error.message, error.hint)


def _page_scan() -> Finding:
    """Whether the kernel lists changed pages quickly, tried on this very process with a file that it maps
    privately, as a VMM does.
    """
    from ramet.host.doctor import Finding
    from ramet.memory.capture import (
        changed_runs_by_pagemap,
        changed_runs_by_scan,
        find_mapping,
        identity_of,
    )

    page = mmap.PAGESIZE
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(4 * page)
            with mmap.mmap(file.fileno(), 4 * page, flags=mmap.MAP_PRIVATE) as memory:
                memory[2 * page] = 1
                pid = os.getpid()
                mappings = find_mapping(pid, identity_of(Path(file.name)))
                try:
                    runs = changed_runs_by_scan(pid, mappings)
                    ok, found = True, "PAGEMAP_SCAN"
                except UnavailableError as error:
                    runs = changed_runs_by_pagemap(pid, mappings)
                    ok, found = None, f"/proc/PID/pagemap, slowly: {error.message}"
    except (RametError, OSError) as error:
        advice = "run ramet where /proc is mounted and not restricted: a template can't be made here"
        return Finding("changed-pages", False, f"can't be listed: {error}", advice)
    if [(run.file_offset, run.length_bytes) for run in runs] != [(2 * page, page)]:
        return Finding("changed-pages", False, f"{found} lists other pages than were changed")
    return Finding("changed-pages", ok, f"listed by {found}", None if ok else _NEWER_IS_QUICKER)


async def _qemu(accelerator: str, lacking: list[str]) -> tuple[list[Finding], DriverReport]:
    from ramet.cli.shapes import DriverReport
    from ramet.drivers.qemu import Qemu
    from ramet.engine.receipts import immutability
    from ramet.host.doctor import Finding

    qemu = Qemu()
    try:
        version = await qemu.version()
    except RametError as error:
        driver = DriverReport(
            name=qemu.name, usable=False, version=None, accelerator=None, reason=error.message
        )
        return [Finding("qemu", False, error.message, error.hint)], driver
    kept = immutability(qemu)
    by_kernel = not kept.startswith("not ")
    findings = [
        Finding("qemu", True, f"{version}: {', '.join(sorted(qemu.abilities))}"),
        Finding(
            "immutability",
            True if by_kernel else None,
            kept if by_kernel else f"{kept}; ramet alone keeps shared mem-files from being written",
            None if by_kernel else "QEMU 8.2 and newer open them read-only; set RAMET_QEMU to one",
        ),
    ]
    return findings, DriverReport(
        name=qemu.name,
        usable=not lacking,
        version=version,
        accelerator=accelerator,
        reason="; ".join(lacking) or None,
    )


async def _firecracker(verdict: KvmVerdict, lacking: list[str]) -> tuple[list[Finding], DriverReport]:
    from ramet.cli.shapes import DriverReport
    from ramet.drivers.firecracker import Firecracker
    from ramet.engine.choice import kvm_runs
    from ramet.host.doctor import Finding

    firecracker = Firecracker()
    try:
        version = await firecracker.version()
    except RametError as error:
        report = DriverReport(
            name=firecracker.name, usable=False, version=None, accelerator=None, reason=error.message
        )
        # Not "missing": QEMU does without it.
        return [Finding("firecracker", None, error.message, error.hint)], report
    found = Finding("firecracker", True, f"{version}: {', '.join(sorted(firecracker.abilities))}")
    reasons = list(lacking)
    if not kvm_runs(verdict, "linux"):
        bare_metal = "; bare-metal guests run (image `probe`)" if kvm_runs(verdict, "bare-metal") else ""
        reasons.insert(0, f"it needs KVM, which doesn't run Linux guests here{bare_metal}")
    return [found], DriverReport(
        name=firecracker.name,
        usable=not reasons,
        version=version,
        accelerator="kvm" if not reasons else None,
        reason="; ".join(reasons) or None,
    )


def _show(report: DoctorReport) -> None:
    rows = [(check.name, _MARKS[check.status], check.found) for check in report.checks]
    output.table(("WHAT", "", "FOUND"), rows)
    for check in report.checks:
        if check.advice:
            output.say(f"{check.name}: {output.clean(check.advice)}")
    for driver in report.drivers:
        verdict = f"ready, with {driver.accelerator}" if driver.usable else f"not usable: {driver.reason}"
        output.say(f"driver {driver.name}: {output.clean(verdict)}")
