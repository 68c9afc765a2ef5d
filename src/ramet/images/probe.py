"""The probe's image: a bare-metal guest for Firecracker that boots in milliseconds and only answers.

It runs on a KVM that can't run Linux, and shows what Firecracker does with memory, disk and vsock where a
Linux guest would be too slow or too large. Its source is in `src/ramet/guest/probe`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from ramet.errors import DamagedError, UnavailableError
from ramet.images import elf
from ramet.images.image import Image, Manifest, images_directory, load_image, made_now, publish_image
from ramet.units import MIB
from ramet.version import __version__

NAME: Final = "probe"
DISK_BYTES: Final = MIB
_KERNEL: Final = "vmlinux"


def build_probe(program: Path) -> Image:
    """Return the image of that program, made now if it hasn't been made before.

    Raises `UnavailableError` when the program can't be read or isn't for x86-64, `OSError` for the cache; no
    half image is left then.
    """
    content = _read(program)
    digest = hashlib.sha256(content).hexdigest()
    key = hashlib.sha256(f"{__version__}\n{digest}\n".encode()).hexdigest()[:20]
    if image := load_image(images_directory() / f"{NAME}-{key}"):
        return image
    manifest = Manifest(
        name=NAME,
        key=key,
        kernel_file=_KERNEL,
        kernel_version=__version__,
        kernel_bytes=len(content),
        kernel_digest=digest,
        kernel_note="it is no Linux kernel: Firecracker enters it in 64-bit mode",
        pvh=False,
        initramfs_bytes=None,
        initramfs_digest=None,
        agent_digest=digest,
        created_at=made_now(),
        guest="bare-metal",
        disk_bytes=DISK_BYTES,
    )
    return publish_image(manifest, {_KERNEL: content})


def _read(program: Path) -> bytes:
    try:
        content = program.read_bytes()
    except OSError as error:
        raise UnavailableError(
            f"the probe guest can't be read: {program}: {error.strerror}", hint="run `make setup`"
        ) from error
    try:
        usable = elf.machine(content) == elf.MACHINE_X86_64
    except DamagedError:
        usable = False
    if not usable:
        raise UnavailableError(f"{program} is no program for x86-64", hint="run `make setup`")
    return content
