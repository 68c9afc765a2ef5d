"""Facts about a kernel for guests: the uses of a guest that it doesn't support."""

from __future__ import annotations

import re
from typing import Final

from ramet.images.kernel import Kernel
from ramet.images.modules import module_name

_USER_XATTRS_SINCE: Final = (6, 6)
"""Linux 6.6 has `user.*` attributes on tmpfs (`mm/shmem.c`, shmem_user_xattr_handler)."""
_MODULES: Final = {
    "container images": ("erofs", "overlay"),
    "networks": ("virtio_net",),
    "nftables": ("nf_tables",),
    "VMGenID": ("vmgenid",),
}
"""The uses, and the modules that they need, built in or not."""


def gaps(kernel: Kernel) -> list[str]:
    """List the uses that this kernel doesn't support. Raises `OSError` when its modules can't be read.

    Of a kernel without a list of modules only its version is known.
    """
    missing = []
    if kernel.modules_dir is not None:
        there = _built_in(kernel) | {
            name
            for path in (kernel.modules_dir / "kernel").rglob("*.ko*")
            if (name := module_name(str(path)))
        }
        missing = [use for use, needed in _MODULES.items() if not there.issuperset(needed)]
    numbers = re.match(r"(\d+)\.(\d+)", kernel.version)
    if numbers and (int(numbers[1]), int(numbers[2])) < _USER_XATTRS_SINCE:
        missing.append("user.* attributes on a root in RAM")
    return missing


def has_generation_id(kernel: Kernel) -> bool:
    """Tell whether the kernel is known to have a driver for VMGenID built in."""
    try:
        return "vmgenid" in _built_in(kernel)
    except OSError:
        return False


def _built_in(kernel: Kernel) -> set[str]:
    if kernel.modules_dir is None:
        return set()
    lines = (kernel.modules_dir / "modules.builtin").read_text(errors="replace").split()
    return {name for line in lines if (name := module_name(line))}
