"""The beginning of an instance's guest, and the boot snapshots that such guests are forks of."""

from typing import Literal

import msgspec

from ramet.surface import exported


@exported
class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """The way in which the guest of a new instance began to run."""

    how: Literal["snapshot", "cold", "fallback"]
    """`snapshot`: as a fork of the boot snapshot of its image and shape; `cold`: it booted, as was wanted;
    `fallback`: it booted, since it can't have a boot snapshot."""
    detail: str
    key: str | None = None
    """The boot snapshot's (`BootSnapshot.key`); null without one."""


@exported
class BootSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A guest that was booted once, before its main process: what `run` of the same shape forks."""

    key: str
    """A digest of all that it depends on: kernel, agent, image, driver and its release, shape."""
    driver: str
    driver_version: str
    accelerator: str
    kernel_version: str
    memory_bytes: int
    cpus: int
    size_bytes: int
    """The bytes that it has on the disk for itself; the image's parts aren't among them."""
    created_at: str
    used_at: str
    """UTC, ISO 8601."""
