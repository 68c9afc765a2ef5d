"""The image that boots a guest of a container image: a kernel, and an initramfs with the agent as init.

The agent mounts the container image and makes it its root. The initramfs stays as the root of the kernel's
own threads: what a program in the guest needs later, such as a kind of network device, the kernel loads with
the modprobe that it finds here.

Source: Linux, `Documentation/admin-guide/sysctl/kernel.rst`, "modprobe".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from ramet.errors import UnavailableError
from ramet.images import modules
from ramet.images.cpio import FileTree
from ramet.images.image import Image
from ramet.images.kernel import Kernel, find_kernel
from ramet.images.linux import find_busybox, linux_image
from ramet.images.skeleton import add_devices

NAME: Final = "container"
_DIRECTORIES: Final = ("bin", "dev", "etc/ramet", "proc", "run", "sbin", "sys")
_PROGRAMS: Final = ("sbin/modprobe", "bin/sh")
"""The kernel runs the first. The second is for who looks for a fault."""


def container_boot_image(find_agent: Callable[[], Path]) -> Image:
    """Return the image that boots guests of container images, made first if necessary.

    Raises `UnavailableError` when there is no kernel, agent or busybox, or when the kernel can't mount a
    container image; the other errors are those of `linux_image`.
    """
    kernel, busybox = find_kernel(), find_busybox()

    def initramfs(agent_program: bytes, busybox_program: bytes) -> bytes:
        return _initramfs(kernel, agent_program, busybox_program)

    return linux_image(NAME, kernel, find_agent(), busybox, initramfs)


def _initramfs(kernel: Kernel, agent: bytes, busybox: bytes) -> bytes:
    tree = FileTree()
    for path in _DIRECTORIES:
        tree.directory(path)
    add_devices(tree)
    tree.file("init", agent, 0o755)
    tree.file("bin/busybox", busybox, 0o755)
    for path in _PROGRAMS:
        tree.symlink(path, "/bin/busybox")
    tree.file("etc/ramet/modules", "".join(f"{path}\n" for path in _add_modules(tree, kernel)))
    return tree.pack()


def _add_modules(tree: FileTree, kernel: Kernel) -> list[str]:
    if kernel.modules_dir is None:
        return []
    available = modules.ModuleTree.from_directory(kernel.modules_dir)
    at_boot = {module.name: module for module in available.needed_at_boot()}
    try:
        for module in available.needed_for_root():
            at_boot.setdefault(module.name, module)
    except UnavailableError as error:
        raise UnavailableError(
            f"the kernel {kernel.version} can't mount container images: {error.message}",
            hint=f"add it again with the package that has its other modules (Ubuntu: linux-modules-extra-"
            f"{kernel.version}), or another kernel: `ramet kernel add PACKAGE.deb…`",
        ) from error
    on_demand = available.needed(modules.CONTAINER_MODULES, optional=True)
    return modules.install(tree, kernel.version, list(at_boot.values()), on_demand, available.builtin_text)
