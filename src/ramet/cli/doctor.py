"""doctor: what this machine can do, and why not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ramet import config
from ramet.cli import calling, output
from ramet.cli.options import Json
from ramet.errors import RametError, UnavailableError

if TYPE_CHECKING:
    from ramet.cli.shapes import Check, DoctorReport, DriverReport

_MARKS = {"ok": "ok", "warning": "!", "missing": "missing"}


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
    from ramet.guest.agent_binary import agent_path
    from ramet.images.builtin import find_busybox
    from ramet.images.kernel import find_kernel

    def kernel() -> str:
        found = find_kernel()
        return f"{found.version} ({found.source}: {found.vmlinuz})"

    parts = [
        _check("kernel", kernel),
        _check("busybox", lambda: str(find_busybox())),
        _check("agent", lambda: str(agent_path())),
        _home(),
    ]
    kvm, accelerator = await _kvm()
    qemu, driver = await _qemu(accelerator, parts)
    return DoctorReport(ok=driver.usable, drivers=[driver], checks=[*qemu, kvm, *parts])


def _check(name: str, find: Callable[[], str]) -> Check:
    from ramet.cli.shapes import Check

    try:
        return Check(name=name, status="ok", detail=find())
    except RametError as error:
        return Check(name=name, status="missing", detail=error.message, hint=error.hint)


async def _kvm() -> tuple[Check, str]:
    """What KVM is good for, and the accelerator that `auto` takes."""
    from ramet.cli.shapes import Check
    from ramet.host.kvm import kvm_verdict

    verdict = await kvm_verdict(config.cache_directory())
    if verdict.status == "runs_linux":
        return Check(name="kvm", status="ok", detail=verdict.detail), "kvm"
    hint = "guests are emulated (tcg), which is slower"
    return Check(name="kvm", status="warning", detail=f"{verdict.status}: {verdict.detail}", hint=hint), "tcg"


async def _qemu(accelerator: str, parts: list[Check]) -> tuple[list[Check], DriverReport]:
    from ramet.cli.shapes import Check, DriverReport
    from ramet.drivers.api import Ability
    from ramet.drivers.qemu import Qemu

    qemu = Qemu()
    try:
        version = await qemu.version()
    except RametError as error:
        check = Check(name="qemu", status="missing", detail=error.message, hint=error.hint)
        driver = DriverReport(
            name=qemu.name, usable=False, version=None, accelerator=None, reason=error.message
        )
        return [check], driver
    checks = [Check(name="qemu", status="ok", detail=version)]
    if Ability.OPENS_MEM_FILE_READ_ONLY in qemu.abilities:
        detail = "the kernel keeps every VMM from writing a shared mem-file"
        checks.append(Check(name="immutability", status="ok", detail=detail))
    else:
        detail = (
            f"not enforced by the kernel: QEMU {version} opens mem-files read-write (8.2 and newer don't)"
        )
        checks.append(Check(name="immutability", status="warning", detail=detail))
    missing = [part.detail for part in parts if part.status == "missing"]
    driver = DriverReport(
        name=qemu.name,
        usable=not missing,
        version=version,
        accelerator=accelerator,
        reason="; ".join(missing) or None,
    )
    return checks, driver


def _home() -> Check:
    """Whether the home can be written, and lies where image files can be linked into it."""
    from ramet.cli.shapes import Check

    home = config.home_directory()
    existing = _nearest_existing(home)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        hint = "set RAMET_HOME to a directory of yours"
        return Check(name="home", status="missing", detail=f"{home} can't be written", hint=hint)
    detail = f"{home} ({_filesystem(existing)})"
    if existing.stat().st_dev != _nearest_existing(config.cache_directory()).stat().st_dev:
        hint = "put RAMET_HOME and RAMET_CACHE on one file system, and kernels are linked, not copied"
        return Check(
            name="home", status="warning", detail=f"{detail}, another one than the cache's", hint=hint
        )
    return Check(name="home", status="ok", detail=detail)


def _nearest_existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def _filesystem(path: Path) -> str:
    """The type of the file system that holds `path`, from proc(5)'s mountinfo."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return "unknown file system"


def _show(report: DoctorReport) -> None:
    rows = [(check.name, _MARKS[check.status], check.detail) for check in report.checks]
    output.table(("WHAT", "", "FOUND"), rows)
    for check in report.checks:
        if check.hint:
            output.say(f"{check.name}: {check.hint}")
    for driver in report.drivers:
        verdict = f"ready, with {driver.accelerator}" if driver.usable else f"not usable: {driver.reason}"
        output.say(f"driver {driver.name}: {output.clean(verdict)}")
