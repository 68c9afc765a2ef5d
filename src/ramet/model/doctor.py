"""The report of `ramet doctor`: the guests that this machine can run, and the obstacles."""

from typing import Literal

import msgspec

from ramet.surface import exported


@exported
class DriverReport(msgspec.Struct, frozen=True, kw_only=True):
    """A driver, and the guests that it can run on this machine."""

    name: str
    usable: bool
    """True if the driver runs Linux guests here."""
    version: str | None
    accelerator: str | None
    """The meaning of `--accel auto` here: `kvm` or `tcg` (emulation)."""
    reason: str | None
    """The reason why the driver isn't usable."""
    guests: list[str]
    """The kinds of guests that it can run here: `linux`, `bare-metal`."""


@exported
class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A result of `doctor`, about one part of the machine."""

    name: str
    ok: bool | None
    """Null if ramet works with a loss; false if it can't run or fork guests without this part."""
    found: str
    advice: str | None
    """The remedy; null if none is needed."""
    status: Literal["ok", "warning", "missing"]
    """`ok` in a word."""
    detail: str
    """The same as `found`."""
    hint: str | None = None
    """The same as `advice`."""


@exported
class DoctorReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `doctor`. `ok` is true if at least one driver is usable."""

    ok: bool
    drivers: list[DriverReport]
    checks: list[Check]
