"""doctor: what this machine can run, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ramet.cli import calling, output
from ramet.cli.options import Json
from ramet.errors import UnavailableError

if TYPE_CHECKING:
    from ramet.model.doctor import DoctorReport

_MARKS: Final = {"ok": "ok", "warning": "!", "missing": "missing"}


def doctor(json: Json = False) -> None:
    """Check what this machine can run.

    Each problem is listed with its remedy. The exit code is 5 when no driver can run a guest.
    """

    async def body() -> int:
        from ramet.api.doctor import doctor as examine
        from ramet.cli.progress import working

        with working("examining this machine", quiet=json):
            report = await examine()
        if json:
            output.emit(report)
        else:
            _show(report)
        return 0 if report.ok else UnavailableError.exit_code

    calling.call(body, json=json)


def _show(report: DoctorReport) -> None:
    from ramet.cli import tables

    rows = [(check.name, _MARKS[check.status], check.found) for check in report.checks]
    tables.table(("WHAT", "", "FOUND"), rows)
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
