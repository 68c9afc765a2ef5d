"""The checks of `ramet doctor`: the abilities of this machine, and the reasons for missing ones.

`ramet.system.doctor` tries the machine. The findings of drivers, images, the memory plane and the home's own
records are added here. Nothing is changed but the cached verdict on KVM.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from ramet.disk.filesystem import find_mke2fs
from ramet.drivers.interface import Driver
from ramet.engine.drivers import NOT_IMPLEMENTED, Fit, accelerator_of, immutability, installed_drivers
from ramet.engine.lifecycle.state import unseen_process
from ramet.engine.pool import directory as pool_directory
from ramet.errors import RametError, UnavailableError
from ramet.guest.agent_binary import agent_path
from ramet.images.kernel import find_kernel
from ramet.images.kernel_gaps import gaps
from ramet.images.linux import find_busybox
from ramet.memory.mappings import find_mapping, identity_of
from ramet.memory.pagemap import changed_runs_by_pagemap, changed_runs_by_scan
from ramet.model.doctor import Check, DoctorReport, DriverReport
from ramet.model.record import Guest, ProcessRef
from ramet.oci.doctor import registries_finding
from ramet.paths import Home
from ramet.store.records import Store
from ramet.system import doctor as system_doctor
from ramet.system import liveness, threads
from ramet.system.doctor import Finding
from ramet.system.kvm import KvmVerdict, kvm_verdict
from ramet.system.kvm_kernels import Trial, trials

_WORDS: Final[dict[bool | None, Literal["ok", "warning", "missing"]]] = {
    True: "ok",
    None: "warning",
    False: "missing",
}
_EVERY_GUEST_NEEDS: Final = frozenset(
    {"kernel", "busybox", "agent", "home", "free-space", "open-files", "processes"}
)
_GUESTS: Final[tuple[Guest, ...]] = ("linux", "bare-metal")
_NEWER_IS_QUICKER: Final = "Linux 6.7 lists them in about a millisecond; older kernels take some tens"


async def examine(home: Path, cache: Path) -> DoctorReport:
    """Examine the machine, the drivers, the parts of guests, and a home, which need not exist.

    Raises nothing because the machine lacks something: that is in the report.
    """
    verdict = await kvm_verdict(cache)
    tried = trials(cache) if verdict.status == "bare_metal_only" else []
    machine = await threads.run(_machine, verdict, tried, home, cache)
    lacking = [finding.found for finding in machine if _is_lacking(finding)]
    reports, findings, kept = [], [], []
    for driver in installed_drivers():
        finding, report = await _driver(driver, verdict, lacking, tried)
        findings.append(finding)
        reports.append(report)
        if report.version is not None:
            kept.append(f"{driver.name}: {immutability(driver)}")
    if kept:
        findings.append(_immutability(kept))
    for name, why in NOT_IMPLEMENTED.items():
        findings.append(Finding(name, False, why, "use another driver"))
        reports.append(_unusable(name, why))
    usable = any(report.usable for report in reports)
    if usable:
        # A driver that isn't there is no loss where another is.
        findings = [
            msgspec.structs.replace(finding, ok=None) if finding.ok is False else finding
            for finding in findings
        ]
    return DoctorReport(
        ok=usable, drivers=reports, checks=[_check(finding) for finding in (*findings, *machine)]
    )


def _machine(verdict: KvmVerdict, tried: Sequence[Trial], home: Path, cache: Path) -> list[Finding]:
    return [
        system_doctor.kvm_finding(verdict),
        *filter(None, [system_doctor.kernels_finding(tried)]),
        *_parts(),
        registries_finding(),
        *system_doctor.home_findings(home, cache),
        *_unseen(home),
        _page_scan(),
        system_doctor.ptrace_finding(),
        *system_doctor.limit_findings(),
    ]


def _is_lacking(finding: Finding) -> bool:
    return finding.ok is False and finding.name in _EVERY_GUEST_NEEDS


def _check(finding: Finding) -> Check:
    return Check(
        name=finding.name,
        ok=finding.ok,
        found=finding.found,
        advice=finding.advice,
        status=_WORDS[finding.ok],
        detail=finding.found,
        hint=finding.advice,
    )


def _parts() -> Iterator[Finding]:
    """Look for the parts that guests are made of."""

    def kernel() -> str:
        kernel = find_kernel()
        missing = gaps(kernel)
        without = f"; it lacks {', '.join(missing)}" if missing else ""
        return f"{kernel.version} ({kernel.source}: {kernel.vmlinuz}){without}"

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


def _unseen(home: Path) -> Iterator[Finding]:
    """Report what belongs to other machines or containers, where there is any."""
    try:
        lines = left_alone(Home(home.resolve()))
    except RametError:
        return  # the home's own finding says why
    if lines:
        advice = (
            "run ramet there; an instance whose machine or container is gone for good is removed with"
            " `ramet rm --lost NAME`"
        )
        yield Finding("unseen", None, f"left alone: {'; '.join(lines)}", advice)


def left_alone(home: Home) -> list[str]:
    """Count what a home holds of other machines or other PID namespaces, one line per kind and reason.

    Nothing of it is undone, ended or removed from here. Raises `StoreError`, `UnavailableError` when the
    home's database can't be read.
    """
    if not home.database.exists():
        return []
    store = Store(home.database)
    try:
        involved: list[tuple[str, ProcessRef | None]] = []
        for record in store.all():
            unseen = unseen_process(record)
            involved.append(("instance", unseen[1] if unseen is not None else record.owner))
        involved += [("snapshot being made", row.maker) for row in store.snapshots.all()]
    finally:
        store.close()
    involved += [("warm VMM", entry.holder) for entry in pool_directory.entries(pool_directory.names(home))]
    counted: Counter[tuple[str, str]] = Counter()
    for what, process in involved:
        if process is not None and (why := liveness.why_unseen(process)) is not None:
            counted[why, what] += 1
    return [_line(count, what, why) for (why, what), count in sorted(counted.items())]


def _line(count: int, what: str, why: str) -> str:
    kind, _, rest = what.partition(" ")
    several = "s" if count != 1 else ""
    noun = f"{what}{several}" if kind == "warm" else f"{kind}{several}{' ' if rest else ''}{rest}"
    return f"{count} {noun}: {why}"


def _page_scan() -> Finding:
    """Try how the kernel lists changed pages, on this process, with a file mapped privately as a VMM does."""
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
                    ok, outcome = True, "PAGEMAP_SCAN"
                except UnavailableError as error:
                    runs = changed_runs_by_pagemap(pid, mappings)
                    ok, outcome = None, f"/proc/PID/pagemap, slowly: {error.message}"
    except (RametError, OSError) as error:
        advice = "run ramet where /proc is mounted and not restricted: a template can't be made here"
        return Finding("changed-pages", False, f"can't be listed: {error}", advice)
    if [(run.file_offset, run.length_bytes) for run in runs] != [(2 * page, page)]:
        return Finding("changed-pages", False, f"{outcome} lists other pages than were changed")
    return Finding("changed-pages", ok, f"listed by {outcome}", None if ok else _NEWER_IS_QUICKER)


async def _driver(
    driver: Driver, verdict: KvmVerdict, lacking: Sequence[str], tried: Sequence[Trial]
) -> tuple[Finding, DriverReport]:
    try:
        version = await driver.version()
    except RametError as error:
        return Finding(driver.name, False, error.message, error.hint), _unusable(driver.name, error.message)
    accelerators: dict[Guest, str] = {}
    reasons = list(lacking)
    kernel = _kernel_version()
    works = any(
        trial.runs and (trial.driver, trial.kernel_version) == (driver.name, kernel) for trial in tried
    )
    for guest in _GUESTS:
        fit = Fit.RUNS if works and guest == "linux" else None
        try:
            accelerators[guest] = await accelerator_of(driver, guest, "auto", verdict, fit=fit)
        except UnavailableError as error:
            if guest == "linux":
                reasons.insert(0, error.message)
    standing = driver.standing()
    if standing.why_unusable is not None:
        reasons.insert(0, standing.why_unusable)
    summary = f"{version} ({standing.words}): {', '.join(sorted(driver.abilities))}"
    return Finding(driver.name, None if standing.advice else True, summary, standing.advice), DriverReport(
        name=driver.name,
        usable=not reasons,
        version=version,
        accelerator=accelerators.get("linux"),
        reason="; ".join(reasons) or None,
        guests=list(accelerators),
    )


def _unusable(name: str, why: str) -> DriverReport:
    return DriverReport(name=name, usable=False, version=None, accelerator=None, reason=why, guests=[])


def _kernel_version() -> str | None:
    """Return the version of the kernel that a new guest would have."""
    try:
        return find_kernel().version
    except RametError:
        return None


def _immutability(kept: Sequence[str]) -> Finding:
    """Report per driver who keeps shared mem-files from being written."""
    summary = "; ".join(kept)
    if "not enforced" not in summary:
        return Finding("immutability", True, summary)
    advice = "QEMU 8.2 and newer open them read-only; set RAMET_QEMU to one"
    return Finding(
        "immutability", None, f"{summary}; ramet alone keeps shared mem-files from being written", advice
    )
