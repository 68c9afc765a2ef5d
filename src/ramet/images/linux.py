"""Images of Linux: a kernel that a VMM can enter, and an initramfs, made once of their ingredients.

An image is kept under a name that is made of its content, so it can be shared and is never written again.
Making it takes about a second; to find it again takes a stat of each ingredient, see `_note`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, Literal

from ramet.errors import DamagedError, UnavailableError
from ramet.images import elf
from ramet.images.bzimage import has_pvh_entry, unpack_vmlinux
from ramet.images.image import Image, Manifest, images_directory, load_image, made_now, publish_image
from ramet.images.kernel import Kernel
from ramet.images.kernel_gaps import has_generation_id
from ramet.images.publish import replace_file
from ramet.programs import why_not
from ramet.progress import report

BUSYBOX_HINT: Final = "install the package busybox-static (Debian, Ubuntu)"


def find_busybox() -> Path:
    """Find a statically linked busybox on this host.

    Raises `UnavailableError` naming the package that has it.
    """
    for path in (Path("/bin/busybox"), Path("/usr/bin/busybox"), Path("/usr/local/bin/busybox")):
        if why_not(str(path)) is None:
            return path
    raise UnavailableError("there is no busybox for the guest", hint=BUSYBOX_HINT)


def linux_image(
    name: str, kernel: Kernel, agent: Path, busybox: Path, initramfs: Callable[[bytes, bytes], bytes]
) -> Image:
    """Return the image `name` of these ingredients, made now if it hasn't been made before.

    `initramfs` makes the archive of the contents of agent and busybox; it depends on nothing but `kernel` and
    them. Raises `UnavailableError` when an ingredient is missing or can't work in the guest, `DamagedError`
    for a broken kernel or module, `OSError` for the cache; no half image is left then.
    """
    note = _note(name, kernel, agent, busybox)
    if image := _noted_image(name, note):
        return image
    report("making the image")
    program = read_program(agent, "the guest agent", "run `make setup`")
    archive = initramfs(program, read_program(busybox, "busybox", BUSYBOX_HINT))
    image = _make(name, kernel, program, archive)
    replace_file(note, image.key)
    return image


def _note(name: str, kernel: Kernel, agent: Path, busybox: Path) -> Path:
    """Return the file that remembers the image of these ingredients.

    Its name is a digest of the ingredients' stat(2), as in git's index: reading and hashing 60 MB at every
    start would cost a hundred times more. The digest includes the change time, which no program can set back.
    The modules of a kernel count by their directory and index files, which their installer rewrites; the
    recipe counts by its source.
    """
    sources = [kernel.vmlinuz, agent, busybox]
    if kernel.modules_dir:
        sources += [kernel.modules_dir / name for name in ("", "kernel", "modules.builtin", "modules.dep")]
    identity = [_recipe(), *(f"{path.absolute()} {_stat_of(path)}" for path in sources)]
    digest = hashlib.sha256(os.fsencode("\n".join(identity))).hexdigest()
    return images_directory() / f".{name}-of-{digest[:32]}"


def _stat_of(path: Path) -> str:
    try:
        status = path.stat()
    except FileNotFoundError:
        return "absent"
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


@cache
def _recipe() -> str:
    room = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in room)).hexdigest()


def _noted_image(name: str, note: Path) -> Image | None:
    try:
        return load_image(images_directory() / f"{name}-{note.read_text(encoding='utf-8')}")
    except FileNotFoundError:
        return None


def _make(name: str, kernel: Kernel, agent: bytes, initramfs: bytes) -> Image:
    kernel_bytes, kernel_file, pvh, kernel_note = _bootable(kernel)
    kernel_digest = hashlib.sha256(kernel_bytes).hexdigest()
    initramfs_digest = hashlib.sha256(initramfs).hexdigest()
    key = hashlib.sha256(f"{kernel.version}\n{kernel_digest}\n{initramfs_digest}\n".encode()).hexdigest()[:20]
    if image := load_image(images_directory() / f"{name}-{key}"):
        return image
    manifest = Manifest(
        name=name,
        key=key,
        kernel_file=kernel_file,
        kernel_version=kernel.version,
        kernel_bytes=len(kernel_bytes),
        kernel_digest=kernel_digest,
        kernel_note=kernel_note,
        pvh=pvh,
        initramfs_bytes=len(initramfs),
        initramfs_digest=initramfs_digest,
        agent_digest=hashlib.sha256(agent).hexdigest(),
        created_at=made_now(),
        generation_id=has_generation_id(kernel),
    )
    return publish_image(manifest, {kernel_file: kernel_bytes, "initramfs": initramfs})


def _bootable(kernel: Kernel) -> tuple[bytes, Literal["vmlinux", "vmlinuz"], bool, str | None]:
    """Return (kernel, its file name, whether it can be entered directly, the reason why not)."""
    try:
        packed = kernel.vmlinuz.read_bytes()
    except OSError as error:
        raise UnavailableError(f"the kernel {kernel.vmlinuz} can't be read: {error.strerror}") from error
    try:
        unpacked = unpack_vmlinux(packed)
        if has_pvh_entry(unpacked):
            return unpacked, "vmlinux", True, None
        note = "it has no PVH entry"
    except (UnavailableError, DamagedError) as error:
        note = error.message
    return packed, "vmlinux" if packed.startswith(elf.MAGIC) else "vmlinuz", False, note


def read_program(path: Path, what: str, hint: str) -> bytes:
    """Read a program for the guest, which has no dynamic linker.

    A script passes; an ELF file has to be static.
    """
    try:
        program = path.read_bytes()
    except OSError as error:
        raise UnavailableError(f"{what} can't be read: {path}: {error.strerror}", hint=hint) from error
    if program[:2] == b"#!":
        return program
    try:
        usable = elf.machine(program) == elf.MACHINE_X86_64 and not elf.needs_interpreter(program)
    except DamagedError:
        usable = False
    if not usable:
        raise UnavailableError(f"{path} is no static x86-64 program, so it can't run in the guest", hint=hint)
    return program
