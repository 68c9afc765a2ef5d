"""The report of `ramet doctor`: what this machine can do, and why not."""

from typing import Literal

import msgspec

from ramet.surface import exported


@exported
class DriverReport(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a driver can run guests on this machine."""

    name: str
    usable: bool
    """For Linux guests."""
    version: str | None
    accelerator: str | None
    """What `--accel auto` means here: `kvm` or `tcg` (emulation)."""
    reason: str | None
    """Why it isn't usable."""
    guests: list[str]
    """What it can run here: `linux`, `bare-metal`."""


@exported
class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that `doctor` looked at."""

    name: str
    ok: bool | None
    """Null: it works, with a loss. False: without it there is no guest, or no fork."""
    found: str
    advice: str | None
    """What to do about it, or null when there is nothing to do."""
    status: Literal["ok", "warning", "missing"]
    """`ok` in a word."""
    detail: str
    """The same as `found`."""
    hint: str | None = None
    """The same as `advice`."""


@exported
class DoctorReport(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine can do. `ok`: at least one driver is usable."""

    ok: bool
    drivers: list[DriverReport]
    checks: list[Check]
