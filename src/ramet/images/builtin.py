"""The built-in image: one initramfs with the agent as init, busybox and a few kernel modules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ramet.errors import UnavailableError
from ramet.images import modules
from ramet.images.cpio import FileTree
from ramet.images.image import Image
from ramet.images.kernel import Kernel
from ramet.images.linux import BUSYBOX_HINT, linux_image
from ramet.images.skeleton import add_skeleton
from ramet.system import outside

NAME: Final = "builtin"
_APPLET: Final = re.compile(r"(?:usr/)?s?bin/[A-Za-z0-9_.\[-]{1,64}", re.ASCII)
_APPLETS_LIMIT_BYTES: Final = 65536
_BUSYBOX_TIMEOUT_S: Final = 10
_SHELL: Final = frozenset({"bin/sh", "usr/bin/sh"})
"""Without it the guest has nothing to run."""


def build_builtin(kernel: Kernel, agent: Path, busybox: Path) -> Image:
    """Return the built-in image of these ingredients, made now if it hasn't been made before.

    Raises as `linux_image`.
    """

    def initramfs(agent_program: bytes, busybox_program: bytes) -> bytes:
        return _initramfs(kernel, agent_program, busybox_program, _applets(busybox))

    return linux_image(NAME, kernel, agent, busybox, initramfs)


def _initramfs(kernel: Kernel, agent: bytes, busybox: bytes, applets: list[str]) -> bytes:
    tree = FileTree()
    add_skeleton(tree)
    tree.file("init", agent, 0o755)
    tree.file("bin/busybox", busybox, 0o755)
    for applet in applets:
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
        raise UnavailableError(f"{busybox} doesn't list its programs: {error}", hint=BUSYBOX_HINT) from error
    words = listed.stdout.decode("ascii", "replace").split()
    applets = sorted({word for word in words if _APPLET.fullmatch(word)})
    if listed.failed or _SHELL.isdisjoint(applets):
        detail = listed.last_words or f"it ended with {listed.status} and named {len(applets)} of them"
        raise UnavailableError(f"{busybox} doesn't list its programs: {detail}", hint=BUSYBOX_HINT)
    return applets
