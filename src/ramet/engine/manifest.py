"""The manifest of a capture: what its parts are, and which machine they belong to.

Compared *before* a VMM is spawned: a VMM accepts a vmstate that was saved from another machine and hangs.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ramet.drivers.api import Driver
from ramet.errors import DamagedError, UnavailableError
from ramet.host.cpu import host_cpu
from ramet.memory.integrity import PartFacts, check
from ramet.model.record import HostCpu, Machine
from ramet.paths import MANIFEST_FILE

FORMAT = 1


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One published file: what `stat` says of it, and its digest."""

    facts: PartFacts
    digest: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a template publishes beside its parts."""

    format: int
    driver: str
    driver_version: str
    machine: Machine
    image: str
    kernel_version: str
    generation: int
    host_cpu: HostCpu | None = None
    """The processor that the guest knows, where it is the host's own (KVM)."""
    created_at: str
    parts: dict[str, Part]
    """By file name: the mem-file, the vmstate, the kernel, and what else there is of initramfs and disks."""

    def encoded(self) -> bytes:
        """As JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


class _Format(msgspec.Struct):
    """What every manifest has, whatever else is in it."""

    format: int


def read_manifest(directory: Path) -> Manifest:
    """The manifest in `directory`.

    Raises `DamagedError` when it is missing, unreadable or from a newer ramet.
    """
    path = directory / MANIFEST_FILE
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} can't be read: {error}", hint="make the template again") from error
    return decode_manifest(encoded, str(path), hint="make the template again")


def decode_manifest(encoded: bytes, name: str, *, hint: str) -> Manifest:
    """The manifest that these bytes are; errors call it `name` and have `hint` as the next step.

    Raises `DamagedError` when they are none, or from a newer ramet.
    """
    try:
        # The format first: a newer one need not have this one's fields.
        version = msgspec.json.decode(encoded, type=_Format).format
        if version > FORMAT:
            raise DamagedError(
                f"{name} has format {version}; this ramet knows {FORMAT}", hint="upgrade ramet"
            )
        return msgspec.json.decode(encoded, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DamagedError(f"{name} can't be read: {error}", hint=hint) from error


async def require_restorable(manifest: Manifest, driver: Driver, *, name: str) -> None:
    """Raise `UnavailableError` unless `driver` can make exactly the machine that was saved, here."""
    version = await driver.version()
    # Major and minor.
    if version.split(".")[:2] != manifest.driver_version.split(".")[:2]:
        raise UnavailableError(
            f"{name} was saved by {manifest.driver} {manifest.driver_version}; this machine has {version}",
            hint="make the template again, or give ramet that version",
        )
    saved_on = manifest.host_cpu
    if saved_on is not None and (why := saved_on.missing(host_cpu())):
        raise UnavailableError(
            f"{name} was saved on {saved_on.name}, which KVM shows to guests; this machine can't: {why}",
            hint="make the template again on this machine",
        )


def check_part(manifest: Manifest, directory: Path, part: str) -> None:
    """Raise `DamagedError` when size, blocks, mode or mtime of a part aren't the manifest's.

    Content isn't read.
    """
    check(directory / part, manifest.parts[part].facts)
