"""Validate the manifest of a snapshot from another machine, before anything in it is believed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ramet.disk.chains import chain_of, image_facts
from ramet.disk.volumes import files_of
from ramet.engine.capture.archive import (
    MOST_MEMORY_BYTES,
)
from ramet.engine.manifest import Compressed, Manifest, Part
from ramet.errors import DamagedError
from ramet.images.library.places import why_damaged
from ramet.memory.compressed import HIGHEST_LEVEL, LOWEST_LEVEL
from ramet.memory.delta import open_delta
from ramet.model.container import MainProcess
from ramet.model.names import check_name
from ramet.model.record import Base, Disk
from ramet.units import PAGE_SIZE_BYTES

_MOST_CPUS = 256
_MOST_PORTS = 30
_MOST_BASES = 6
_LAST_SIGNAL = 64
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DISK_NAME = re.compile(r"disk[0-9]{0,2}|root")


def require_harmless(manifest: Manifest, what: str) -> None:
    """Check that a manifest describes only a machine as ramet makes them, because a VMM is told its content.

    Raises `DamagedError`.
    """
    machine, source = manifest.machine, manifest.source
    memory_bytes = machine.memory_bytes
    kernel_arguments = machine.kernel_arguments
    plain = {
        "accelerator": machine.accelerator in {"kvm", "tcg"},
        "machine type": re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,62}", machine.machine_type) is not None,
        "CPU model": re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]{0,254}", machine.cpu_model) is not None,
        "kernel arguments": len(kernel_arguments) <= 2048 and kernel_arguments.isprintable(),
        "memory": 0 < memory_bytes <= MOST_MEMORY_BYTES and memory_bytes % PAGE_SIZE_BYTES == 0,
        "number of CPUs": 1 <= machine.cpus <= _MOST_CPUS,
        "number of ports": 0 <= machine.agent_ports <= _MOST_PORTS,
        # A TAP device is this host's: a file can't choose it.
        "network": not machine.nics,
        "disks": _are_plain(machine.disks),
        "main process": _is_plain_main(manifest.main),
        "image": manifest.image_digest is None or _DIGEST.fullmatch(manifest.image_digest) is not None,
        "parts of the image": _are_bases(machine.bases, manifest.parts),
        "mem-file": manifest.parts[manifest.memory.base].facts.size_bytes == memory_bytes,
        "compressed memory": _is_plain_file(manifest.memory.compressed),
        "source": source is not None and re.fullmatch(r"[0-9a-f]{4,64}", source.id) is not None,
    }
    if wrong := [name for name, is_plain in plain.items() if not is_plain]:
        raise DamagedError(f"{what} is no snapshot that ramet made: {', '.join(wrong)}")
    assert source is not None
    check_name(source.name)


def _is_plain_main(main: MainProcess | None) -> bool:
    """Tell whether the guest can start it. What it runs is the guest's own business."""
    if main is None:
        return True
    texts = (*main.argv, *main.env, *main.env.values(), main.cwd, main.user)
    return (
        1 <= main.stop_signal <= _LAST_SIGNAL
        and main.cwd.startswith("/")
        and not any("\0" in text for text in texts)
        and not any("=" in name or not name for name in main.env)
    )


def _is_plain_file(compressed: Compressed | None) -> bool:
    return compressed is None or (
        re.fullmatch(r"mem(-[0-9a-f]{1,16})?\.zst", compressed.file) is not None
        and LOWEST_LEVEL <= compressed.level <= HIGHEST_LEVEL
    )


def _are_plain(disks: Sequence[Disk]) -> bool:
    """Tell whether each disk has its own files, with a disk's names."""
    files = [name for disk in disks for name in files_of(disk)]
    return len(files) == len(set(files)) and all(
        _DISK_NAME.fullmatch(disk.name)
        and all(re.fullmatch(rf"{disk.name}(-[0-9]+)?\.{disk.format}", name) for name in files_of(disk))
        and (disk.format == "qcow2" or not disk.backing)
        for disk in disks
    )


def _are_bases(bases: Sequence[Base], parts: Mapping[str, Part]) -> bool:
    """Tell whether they are numbered devices. The agent compares the content with the mark itself."""
    return len(bases) <= _MOST_BASES and all(
        (base.name, base.file) == (f"base{number}", f"base{number}.erofs")
        and base.blocks > 0
        and re.fullmatch(r"[0-9a-f]{64}", base.digest) is not None
        and base.part_digest in {None, parts[base.file].digest}
        for number, base in enumerate(bases)
    )


def require_disks(manifest: Manifest, directory: Path, what: str) -> None:
    """Check that each qcow2 file's backing file is its neighbour: it could name any file of this host."""
    for disk in manifest.machine.disks:
        if disk.format != "qcow2":
            continue
        same_chain = chain_of(directory, disk.file) == files_of(disk)
        if not same_chain or image_facts(directory / disk.file).size_bytes != disk.size_bytes:
            raise DamagedError(f"the disk `{disk.name}` in {what} isn't what its manifest says")


def require_bases(manifest: Manifest, directory: Path, what: str) -> None:
    """Raise `DamagedError` unless each part of the container image has the size and the mark that it should.

    Its content is what the snapshot's maker had: the guest that believes it is that guest alone.
    """
    for base in manifest.machine.bases:
        if (why := why_damaged(directory / base.file, base)) is not None:
            raise DamagedError(f"the part `{base.name}` of the image in {what} {why}")


def require_delta(manifest: Manifest, directory: Path, what: str) -> None:
    """Raise `DamagedError` unless the delta is whole and changes as many bytes as its manifest says."""
    memory = manifest.memory
    if memory.delta is not None:
        with open_delta(directory / memory.delta, manifest.machine.memory_bytes) as delta:
            if delta.facts.applied_bytes != memory.delta_bytes:
                raise DamagedError(f"the delta in {what} isn't what its manifest says")
