"""The built-in image: one initramfs with the agent as init, busybox and a few kernel modules.

It is kept under a name that is made of its content, so it can be shared and is never written again. Making
it takes about a second; to find it again takes a stat of each ingredient, see `_note`.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path
from typing import Final, Literal

from ramet.errors import DamagedError, UnavailableError
from ramet.images import elf, modules
from ramet.images.bzimage import has_pvh_entry, unpack_vmlinux
from ramet.images.cpio import FileTree
from ramet.images.image import Image, Manifest, images_directory, load_image, made_now, publish_image
from ramet.images.kernel import Kernel
from ramet.images.publish import replace_file
from ramet.images.skeleton import add_skeleton
from ramet.programs import why_not
from ramet.progress import report
from ramet.system import outside

NAME: Final = "builtin"
_APPLET: Final = re.compile(r"(?:usr/)?s?bin/[A-Za-z0-9_.\[-]{1,64}", re.ASCII)
_APPLETS_LIMIT_BYTES: Final = 65536
_BUSYBOX_TIMEOUT_S: Final = 10
_SHELL: Final = frozenset({"bin/sh", "usr/bin/sh"})
"""Without it the guest has nothing to run."""
_BUSYBOX_HINT: Final = "install the package busybox-static (Debian, Ubuntu)"


def find_busybox() -> Path:
    """Find a statically linked busybox on this host.

    Raises `UnavailableError` naming the package that has it.
    """
    for path in (Path("/bin/busybox"), Path("/usr/bin/busybox"), Path("/usr/local/bin/busybox")):
        if why_not(str(path)) is None:
            return path
    raise UnavailableError("there is no busybox for the built-in image", hint=_BUSYBOX_HINT)


def build_builtin(kernel: Kernel, agent: Path, busybox: Path) -> Image:
    """Return the built-in image of these ingredients, made now if it hasn't been made before.

    Raises `UnavailableError` when an ingredient is missing or can't work in the guest, `DamagedError` for a
    broken kernel or module, `OSError` for the cache; no half image is left then.
    """
    note = _note(kernel, agent, busybox)
    if image := _noted_image(note):
        return image
    report("making the image")
    image = _make(kernel, _read_program(agent, "the guest agent", "run `make setup`"), busybox)
    replace_file(note, image.key)
    return image


def _note(kernel: Kernel, agent: Path, busybox: Path) -> Path:
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
    return images_directory() / f".{NAME}-of-{digest[:32]}"


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


def _noted_image(note: Path) -> Image | None:
    try:
        return load_image(images_directory() / f"{NAME}-{note.read_text(encoding='utf-8')}")
    except FileNotFoundError:
        return None


def _make(kernel: Kernel, agent: bytes, busybox: Path) -> Image:
    kernel_bytes, kernel_file, pvh, kernel_note = _bootable(kernel)
    initramfs = _initramfs(kernel, agent, busybox)
    kernel_digest = hashlib.sha256(kernel_bytes).hexdigest()
    initramfs_digest = hashlib.sha256(initramfs).hexdigest()
    key = hashlib.sha256(f"{kernel.version}\n{kernel_digest}\n{initramfs_digest}\n".encode()).hexdigest()[:20]
    if image := load_image(images_directory() / f"{NAME}-{key}"):
        return image
    manifest = Manifest(
        name=NAME,
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


def _initramfs(kernel: Kernel, agent: bytes, busybox: Path) -> bytes:
    tree = FileTree()
    add_skeleton(tree)
    tree.file("init", agent, 0o755)
    tree.file("bin/busybox", _read_program(busybox, "busybox", _BUSYBOX_HINT), 0o755)
    for applet in _applets(busybox):
        if applet not in tree:
            tree.symlink(applet, "/bin/busybox")
    tree.file("etc/ramet/modules", "".join(f"{path}\n" for path in _add_modules(tree, kernel)))
    return tree.pack()


def _add_modules(tree: FileTree, kernel: Kernel) -> list[str]:
    if kernel.modules_dir is None:
        return []
    available = modules.ModuleTree.from_directory(kernel.modules_dir)
    for_disks = available.needed(modules.DISK_MODULES, optional=True)
    if for_disks:
        paths = modules.paths_in_guest(kernel.version, for_disks)
        tree.file("etc/ramet/modules.ext4", "".join(f"{path}\n" for path in paths))
    return modules.install(
        tree,
        kernel.version,
        available.needed_at_boot(),
        available.needed(modules.AVAILABLE_MODULES, optional=True),
        available.builtin_text,
    )


def _applets(busybox: Path) -> list[str]:
    """List the paths of the programs in this busybox. Output that isn't a path is dropped."""
    try:
        listed = outside.run(
            [str(busybox), "--list-full"], limit_s=_BUSYBOX_TIMEOUT_S, most_bytes=_APPLETS_LIMIT_BYTES
        )
    except OSError as error:
        raise UnavailableError(f"{busybox} doesn't list its programs: {error}", hint=_BUSYBOX_HINT) from error
    words = listed.stdout.decode("ascii", "replace").split()
    applets = sorted({word for word in words if _APPLET.fullmatch(word)})
    if listed.failed or _SHELL.isdisjoint(applets):
        detail = listed.last_words or f"it ended with {listed.status} and named {len(applets)} of them"
        raise UnavailableError(f"{busybox} doesn't list its programs: {detail}", hint=_BUSYBOX_HINT)
    return applets


def _read_program(path: Path, what: str, hint: str) -> bytes:
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
