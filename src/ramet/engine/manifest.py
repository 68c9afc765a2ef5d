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
from ramet.drivers.versions import is_same_release
from ramet.errors import DamagedError, UnavailableError
from ramet.memory.confirmed import is_intact_by_facts, require_intact
from ramet.memory.integrity import MAKE_AGAIN, PartFacts, digest
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
"""Of all others: a ramet that doesn't know compression can use those."""
MANIFEST_TRIES = 3
"""How often to look at a capture that is compacted meanwhile: the same content is in other files then."""
_AGAIN = "make the capture again"
_PART_NAMES = re.compile(
    r"(mem|delta)(-[0-9a-f]+)?|mem(-[0-9a-f]+)?\.zst|vmstate|kernel|initramfs|disk[0-9a-z-]*\.(qcow2|raw)"
)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One published file: what `stat` says of it, and its digest.

    The capture that forks of a running instance are made from has no digests: it goes with the call.
    """

    facts: PartFacts
    digest: str | None = None


class Compressed(msgspec.Struct, frozen=True, kw_only=True):
    """The part `base` in a compressed file (`memory.compressed`). Its digest is that of the part."""

    file: str
    facts: PartFacts
    level: int


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Guest RAM as it was captured: the part `base`, with the pages in the part `delta` over it."""

    base: str = MEM_FILE
    delta: str | None = None
    delta_bytes: int = 0
    """What a fork has to write into its own memory, zeros included."""
    compressed: Compressed | None = None
    """There when `base` has been compressed. That part then lies beside it, if it has been needed since."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What was captured."""

    id: str
    name: str
    state: str
    parent: str | None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a capture publishes beside its parts."""

    format: int
    driver: str
    driver_version: str
    machine: Machine
    arguments: list[str] | None = None
    """The VMM's whole argument vector, device addresses and all; null in one of format 1."""
    ram: tuple[RamRegion, ...] = ()
    """Where the guest sees which part of the mem-file."""
    memory: Memory = Memory()
    image: str
    kernel_version: str
    generation: int
    host_cpu: HostCpu | None = None
    """The processor that the guest knows, where it is the host's own (KVM)."""
    kvm: str | None = None
    """The kind of KVM that it ran on (`host.kvm_kind`); null where it didn't, and in one of before."""
    source: Source | None = None
    labels: dict[str, str] = {}
    created_at: str
    parts: dict[str, Part]
    """By file name: mem-file, delta, vmstate, kernel, and what else there is of initramfs and disks."""

    @property
    def files(self) -> list[str]:
        """What it names, whether it is there or not: the parts, and the compressed memory."""
        compressed = self.memory.compressed
        return [*self.parts, *([compressed.file] if compressed is not None else ())]

    def facts_of(self, file: str) -> PartFacts:
        """The published facts of one of `files`."""
        compressed = self.memory.compressed
        if compressed is not None and file == compressed.file:
            return compressed.facts
        return self.parts[file].facts

    def with_compressed(self, compressed: Compressed | None) -> Manifest:
        """The same capture, its memory compressed so, or raw."""
        return msgspec.structs.replace(
            self,
            format=USUAL_FORMAT if compressed is None else FORMAT,
            memory=msgspec.structs.replace(self.memory, compressed=compressed),
        )

    def encoded(self) -> bytes:
        """As JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """A manifest from its JSON, of which nothing is believed. `where` is for the message.

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
    if missing := sorted(named - manifest.parts.keys()):
        raise DamagedError(f"{where} lists no part {missing[0]!r}, which it needs", hint=_AGAIN)
    if foreign := [name for name in manifest.files if not is_plain_name(name)]:
        raise DamagedError(f"{where} names a part {foreign[0]!r}, which is no plain file name", hint=_AGAIN)


def is_compressed(manifest: Manifest, directory: Path) -> bool:
    """Whether its memory has to be unpacked before a guest can be restored from it."""
    return manifest.memory.compressed is not None and not (directory / manifest.memory.base).exists()


def files_there(manifest: Manifest, directory: Path) -> list[str]:
    """The files that a capture consists of at this moment, as far as the manifest decides it."""
    base = manifest.memory.base
    return [name for name in manifest.files if name != base or not is_compressed(manifest, directory)]


def parts_there(manifest: Manifest, directory: Path) -> list[str]:
    """Those of its parts that lie there: all, but raw memory where it is compressed."""
    return [name for name in files_there(manifest, directory) if name in manifest.parts]


def is_part_name(name: str) -> bool:
    """Whether a capture's parts are called so. A part of any other name could be taken for something else of
    the instance that it is linked into: its log, its socket, its settings.
    """
    return _PART_NAMES.fullmatch(name) is not None


def is_plain_name(name: str) -> bool:
    """Whether `name` can be nothing but a file in the directory that it is looked for in."""
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
    """The manifest in `directory`. Raises `DamagedError` as `decode_manifest`, also when it is missing."""
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
    if not is_same_release(version, manifest.driver_version):
        raise UnavailableError(
            f"{name} was saved by {manifest.driver} {manifest.driver_version}; this machine has {version}",
            hint=f"set {driver.setting} to the path of a {manifest.driver} {manifest.driver_version}; the"
            " capture stays as it is",
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
    """Raise `DamagedError` unless a part is what was published. Content isn't read while size, mode and mtime
    hold; where they don't, its digest decides, once (`memory.confirmed`).

    `name` is what it is called in `directory`, where that is something else, and `capture` the directory of
    the capture that it was taken from, where that is another one.
    """
    known = manifest.parts[part]
    require_intact(directory / (name or part), part, known.facts, known.digest, capture or directory)


def check_vmstate(manifest: Manifest, directory: Path) -> None:
    """Raise `DamagedError` unless the vmstate is what was published, by its content: a VMM that loads another
    one refuses it in words of its own, or doesn't notice. It is small, and read once per call.
    """
    expected = manifest.parts[VMSTATE_FILE].digest
    if expected is not None and digest(directory / VMSTATE_FILE) != expected:
        raise DamagedError(
            f"{directory / VMSTATE_FILE} is damaged: its content isn't what was published", hint=MAKE_AGAIN
        )


def parts_to_read(manifest: Manifest, directory: Path) -> list[str]:
    """The parts of which `check_part` would read the content.

    Raises `DamagedError` when one can't be whole.
    """
    return [
        name
        for name, part in manifest.parts.items()
        if not is_intact_by_facts(directory / name, name, part.facts, part.digest, directory)
    ]
