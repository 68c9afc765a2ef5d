"""The manifest of a capture: what its parts are, and which machine they belong to.

Compared *before* a VMM is spawned: a VMM accepts a vmstate that was saved from another machine and hangs. It
holds what another host needs to know to restore the capture.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from ramet.drivers.interface import Driver
from ramet.errors import DamagedError, UnavailableError
from ramet.memory.confirmed import is_intact_by_facts, require_intact
from ramet.memory.integrity import MAKE_AGAIN, PartFacts, digest
from ramet.model.container import MainProcess
from ramet.model.record import HostCpu, Machine, RamRegion
from ramet.paths import MANIFEST_FILE, MEM_FILE, VMSTATE_FILE
from ramet.system.archive_format import MAX_MANIFEST_BYTES
from ramet.system.cpu import host_cpu
from ramet.system.files import open_regular
from ramet.system.kvm_kind import kvm_kind, why_not_here
from ramet.units import format_bytes

FORMAT = 3
"""The newest that this ramet knows: one whose memory is compressed."""
USUAL_FORMAT = 2
"""The format of all other captures: a ramet that doesn't know compression can use them."""
MANIFEST_TRIES = 3
"""Tries with a capture that is compacted meanwhile: the same content is in other files then."""
_AGAIN = "make the capture again"
_PART_NAMES = re.compile(
    r"(mem|delta)(-[0-9a-f]+)?|mem(-[0-9a-f]+)?\.zst|vmstate|kernel|initramfs|(disk|root)[0-9a-z-]*\.(qcow2|raw)"
    r"|base[0-9]\.erofs"
)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A published file: its facts by `stat`, and its digest.

    The capture that forks of a running instance are made from has no digests: it is removed with the call.
    """

    facts: PartFacts
    digest: str | None = None


class Compressed(msgspec.Struct, frozen=True, kw_only=True):
    """The part `base` in a compressed file (`memory.compressed`). Its digest is the part's."""

    file: str
    facts: PartFacts
    level: int


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Captured guest RAM: the part `base`, with the pages in the part `delta` over it."""

    base: str = MEM_FILE
    delta: str | None = None
    delta_bytes: int = 0
    """Bytes that a fork has to write into its own memory, zeros included."""
    compressed: Compressed | None = None
    """There when `base` has been compressed. That part then lies beside it, if it has been needed since."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The captured instance."""

    id: str
    name: str
    state: str
    parent: str | None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description that a capture publishes beside its parts."""

    format: int
    driver: str
    driver_version: str
    machine: Machine
    arguments: list[str] | None = None
    """The VMM's whole argument vector, device addresses and all; null in one of format 1."""
    ram: tuple[RamRegion, ...] = ()
    """The regions of the mem-file at the addresses where the guest sees them."""
    memory: Memory = Memory()
    image: str
    image_digest: str | None = None
    main: MainProcess | None = None
    """The main process, of which a running guest's is in its memory; null for the built-in images."""
    kernel_version: str
    generation: int
    host_cpu: HostCpu | None = None
    """The processor that the guest knows, if it is the host's own (KVM)."""
    kvm: str | None = None
    """The kind of KVM that it ran on (`host.kvm_kind`); null without KVM, and in an old manifest."""
    source: Source | None = None
    labels: dict[str, str] = {}
    created_at: str
    parts: dict[str, Part]
    """By file name: mem-file, delta, vmstate, kernel, and what else there is of initramfs and disks."""

    @property
    def files(self) -> list[str]:
        """The named files, existing or not: the parts, and the compressed memory."""
        compressed = self.memory.compressed
        return [*self.parts, *([compressed.file] if compressed is not None else ())]

    def facts_of(self, file: str) -> PartFacts:
        """Return the published facts of one of `files`."""
        compressed = self.memory.compressed
        if compressed is not None and file == compressed.file:
            return compressed.facts
        return self.parts[file].facts

    def with_compressed(self, compressed: Compressed | None) -> Manifest:
        """Return the manifest of the same capture, its memory compressed so, or raw."""
        return msgspec.structs.replace(
            self,
            format=USUAL_FORMAT if compressed is None else FORMAT,
            memory=msgspec.structs.replace(self.memory, compressed=compressed),
        )

    def encoded(self) -> bytes:
        """Encode the manifest as JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """Decode and check a manifest from untrusted JSON. `where` is for the message.

    Raises `DamagedError` when it is unreadable, inconsistent, or from a newer ramet.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        written = _format_of(data)
        if written is not None and written > FORMAT:
            raise _newer(where, written) from error
        raise DamagedError(f"{where} can't be read: {error}", hint=_AGAIN) from error
    if manifest.format > FORMAT:
        raise _newer(where, manifest.format)
    return manifest


def require_whole(manifest: Manifest, *, where: str) -> None:
    """Raise `DamagedError` unless it lists every part that it needs, and nothing but plain files."""
    memory = manifest.memory
    named = {memory.base, VMSTATE_FILE, *({memory.delta} if memory.delta is not None else ())}
    named |= {name for disk in manifest.machine.disks for name in (*disk.backing, disk.file)}
    named |= {base.file for base in manifest.machine.bases}
    if missing := sorted(named - manifest.parts.keys()):
        raise DamagedError(f"{where} lists no part {missing[0]!r}, which it needs", hint=_AGAIN)
    if foreign := [name for name in manifest.files if not is_plain_name(name)]:
        raise DamagedError(f"{where} names a part {foreign[0]!r}, which is no plain file name", hint=_AGAIN)


def is_compressed(manifest: Manifest, directory: Path) -> bool:
    """Tell whether the memory has to be unpacked before a guest can be restored from the capture."""
    return manifest.memory.compressed is not None and not (directory / manifest.memory.base).exists()


def files_there(manifest: Manifest, directory: Path) -> list[str]:
    """List the files that a capture consists of at this moment, as far as the manifest decides it."""
    base = manifest.memory.base
    return [name for name in manifest.files if name != base or not is_compressed(manifest, directory)]


def parts_there(manifest: Manifest, directory: Path) -> list[str]:
    """List the existing parts: all, except raw memory that is compressed."""
    return [name for name in files_there(manifest, directory) if name in manifest.parts]


def is_part_name(name: str) -> bool:
    """Tell whether a capture's part can have that name.

    A part of any other name could be taken for something else of the instance that it is linked into: its
    log, its socket, its settings.
    """
    return _PART_NAMES.fullmatch(name) is not None


def is_plain_name(name: str) -> bool:
    """Tell whether `name` can only be a file in the directory in which it is looked for."""
    return 0 < len(name) <= 64 and name[0] != "." and all(c.isalnum() or c in "-_." for c in name)


class _Format(msgspec.Struct):
    format: int


def _format_of(data: bytes) -> int | None:
    try:
        return msgspec.json.decode(data, type=_Format).format
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _newer(where: str, written: int) -> DamagedError:
    return DamagedError(f"{where} has format {written}; this ramet knows {FORMAT}", hint="upgrade ramet")


def read_manifest(directory: Path, file: str = MANIFEST_FILE) -> Manifest:
    """Read the manifest in `directory`.

    Raises `DamagedError` as `decode_manifest`, also when it is missing.
    """
    path = directory / file
    try:
        # Where a VMM has worked, links and FIFOs may lie.
        with open_regular(path) as descriptor:
            data = os.read(descriptor, MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise DamagedError(f"{path} can't be read: {error}", hint=_AGAIN) from error
    manifest = decode_manifest(data, where=str(path))
    require_whole(manifest, where=str(path))
    return manifest


async def require_restorable(manifest: Manifest, driver: Driver, *, name: str) -> None:
    """Raise `UnavailableError` unless `driver` can make exactly the machine that was saved, here."""
    version = await driver.version()
    if not driver.takes_vmstate_of(manifest.driver_version):
        raise UnavailableError(
            f"{name} was saved by {manifest.driver} {manifest.driver_version}; this machine has {version}",
            hint=f"set {driver.setting} to the path of a {manifest.driver} {manifest.driver_version}; the"
            " capture stays unchanged",
        )
    if manifest.arguments is not None:
        here = driver.arguments(manifest.machine)
        if here != manifest.arguments:
            raise UnavailableError(
                f"{name} was saved from another machine: {_difference(manifest.arguments, here)}",
                hint="make the capture again, or use the ramet that made it",
            )
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if manifest.machine.memory_bytes > host_bytes:
        raise UnavailableError(
            f"{name} has {format_bytes(manifest.machine.memory_bytes)} of memory, more than this machine"
            f" ({format_bytes(host_bytes)})",
            hint="restore it on a larger one",
        )
    if manifest.machine.accelerator == "kvm" and (other := why_not_here(manifest.kvm, kvm_kind())):
        raise UnavailableError(
            f"{name} can't be restored here: {other}",
            hint="restore it on a machine with that kind of KVM, or make the capture again on this one",
        )
    saved_on = manifest.host_cpu
    if saved_on is not None and (why := saved_on.missing(host_cpu())):
        raise UnavailableError(
            f"{name} was saved on {saved_on.name}, which KVM shows to guests; this machine can't: {why}",
            hint="make the capture again on this machine",
        )


def _difference(saved: list[str], here: list[str]) -> str:
    for there, present in zip(saved, here, strict=False):
        if there != present:
            return f"`{there}` there, `{present}` here"[:400]
    return f"{len(saved)} arguments there, {len(here)} here"


def check_part(
    manifest: Manifest, directory: Path, part: str, *, name: str | None = None, capture: Path | None = None
) -> None:
    """Raise `DamagedError` unless a part is unchanged since it was published.

    Content isn't read if size, mode and mtime hold; if they don't, its digest decides, once
    (`memory.confirmed`). `name` is its name in `directory`, if that differs, and `capture` the directory of
    the capture that it was taken from, if that is another.
    """
    known = manifest.parts[part]
    require_intact(directory / (name or part), part, known.facts, known.digest, capture or directory)


def check_vmstate(manifest: Manifest, directory: Path) -> None:
    """Raise `DamagedError` unless the vmstate has the published content.

    A VMM that loads a changed vmstate refuses it in its own words, or doesn't notice. The file is small, and
    read once per call.
    """
    expected = manifest.parts[VMSTATE_FILE].digest
    if expected is not None and digest(directory / VMSTATE_FILE) != expected:
        raise DamagedError(
            f"{directory / VMSTATE_FILE} is damaged: its content isn't what was published", hint=MAKE_AGAIN
        )


def parts_to_read(manifest: Manifest, directory: Path) -> list[str]:
    """List the parts of which `check_part` would read the content.

    Raises `DamagedError` when a part can't be whole.
    """
    return [
        name
        for name, part in manifest.parts.items()
        if not is_intact_by_facts(directory / name, name, part.facts, part.digest, directory)
    ]
