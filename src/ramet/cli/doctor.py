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
    from ramet.drivers.api import Driver
    from ramet.host.doctor import Finding
    from ramet.host.kvm import KvmVerdict
    from ramet.host.kvm_kernels import Trial
    from ramet.model.record import Guest

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
    import msgspec

    from ramet.cli.shapes import DoctorReport
    from ramet.engine.drivers import installed_drivers
    from ramet.engine.receipts import immutability
    from ramet.host import doctor as host
    from ramet.host.kvm import kvm_verdict
    from ramet.host.kvm_kernels import trials

    cache = config.cache_directory()
    verdict = await kvm_verdict(cache)
    tried = trials(cache) if verdict.status == "bare_metal_only" else []
    machine = [
        host.kvm_finding(verdict),
        *filter(None, [host.kernels_finding(tried)]),
        *_parts(),
        *host.home_findings(config.home_directory(), cache),
        *_left_alone(),
        _page_scan(),
        host.ptrace_finding(),
        *host.limit_findings(),
    ]
    lacking = [one.found for one in machine if one.ok is False and one.name in _EVERY_GUEST_NEEDS]
    reports, found, kept = [], [], []
    for driver in installed_drivers():
        findings, report = await _driver(driver, verdict, lacking, tried)
        found += findings
        reports.append(report)
        if report.version is not None:
            kept.append(f"{driver.name}: {immutability(driver)}")
    if kept:
        found.append(_immutability(kept))
    usable = any(one.usable for one in reports)
    # A driver that isn't there is no loss where another is.
    found = [msgspec.structs.replace(one, ok=None) if usable and one.ok is False else one for one in found]
    return DoctorReport(ok=usable, drivers=reports, checks=[_check(one) for one in (*found, *machine)])


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
    from ramet.disk.filesystem import find_mke2fs
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
    try:
        yield Finding("mke2fs", True, find_mke2fs())
    except RametError as error:
        yield Finding("mke2fs", None, error.message, error.hint)  # for --disk SIZE:PATH alone


def _left_alone() -> Iterable[Finding]:
    """What belongs to other machines or containers, where there is any."""
    from ramet.engine.elsewhere import left_alone
    from ramet.host.doctor import Finding
    from ramet.paths import Home

    try:
        lines = left_alone(Home(config.home_directory().resolve()))
    except RametError:
        return  # the home's own finding says why
    if lines:
        advice = (
            "run ramet there; an instance whose machine or container is gone for good is removed with"
            " `ramet rm --lost NAME`"
        )
        yield Finding("unseen", None, f"left alone: {'; '.join(lines)}", advice)


def _page_scan() -> Finding:
    """Whether the kernel lists changed pages quickly, tried on this very process with a file that it maps
    privately, as a VMM does.
    """
    from ramet.host.doctor import Finding
    from ramet.memory.mappings import find_mapping, identity_of
    from ramet.memory.pagemap import changed_runs_by_pagemap, changed_runs_by_scan

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


async def _driver(
    driver: Driver, verdict: KvmVerdict, lacking: list[str], tried: list[Trial]
) -> tuple[list[Finding], DriverReport]:
    from ramet.cli.shapes import DriverReport
    from ramet.engine.choice import Fit, accelerator_of
    from ramet.host.doctor import Finding

    try:
        version = await driver.version()
    except RametError as error:
        report = DriverReport(
            name=driver.name, usable=False, version=None, accelerator=None, reason=error.message, guests=[]
        )
        return [Finding(driver.name, False, error.message, error.hint)], report
    accelerators: dict[Guest, str] = {}
    reasons = list(lacking)
    guests: tuple[Guest, ...] = ("linux", "bare-metal")
    version_here = _kernel_version()
    runs = any(one.runs and (one.driver, one.kernel_version) == (driver.name, version_here) for one in tried)
    for guest in guests:
        fit = Fit.RUNS if runs and guest == "linux" else None
        try:
            accelerators[guest] = await accelerator_of(driver, guest, "auto", verdict, fit=fit)
        except UnavailableError as error:
            if guest == "linux":
                reasons.insert(0, error.message)
    standing = driver.standing()
    found = f"{version} ({standing.words}): {', '.join(sorted(driver.abilities))}"
    findings = [Finding(driver.name, None if standing.advice else True, found, standing.advice)]
    return findings, DriverReport(
        name=driver.name,
        usable=not reasons,
        version=version,
        accelerator=accelerators.get("linux"),
        reason="; ".join(reasons) or None,
        guests=list(accelerators),
    )


def _kernel_version() -> str | None:
    """Of the kernel that a new guest would have."""
    from ramet.images.kernel import find_kernel

    try:
        return find_kernel().version
    except RametError:
        return None


def _immutability(kept: list[str]) -> Finding:
    """Who keeps shared mem-files from being written, driver by driver."""
    from ramet.host.doctor import Finding

    found = "; ".join(kept)
    if "not enforced" not in found:
        return Finding("immutability", True, found)
    advice = "QEMU 8.2 and newer open them read-only; set RAMET_QEMU to one"
    return Finding(
        "immutability", None, f"{found}; ramet alone keeps shared mem-files from being written", advice
    )


def _show(report: DoctorReport) -> None:
    rows = [(check.name, _MARKS[check.status], check.found) for check in report.checks]
    output.table(("WHAT", "", "FOUND"), rows)
    for check in report.checks:
        if check.advice:
            output.say(f"{check.name}: {output.clean(check.advice)}")
    for driver in report.drivers:
        if driver.usable:
            verdict = f"ready, with {driver.accelerator}"
        elif driver.guests:
            verdict = f"{', '.join(driver.guests)} guests only (image `probe`): {driver.reason}"
        else:
            verdict = f"not usable: {driver.reason}"
        output.say(f"driver {driver.name}: {output.clean(verdict)}")
