"""Which kernel modules a guest gets, and the index files from which its `modprobe` finds them.

Sources: modinfo(8) and include/linux/module.h for .modinfo, modules.dep(5), depmod(8).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ramet.errors import DamagedError, UnavailableError
from ramet.images.compression import decompress
from ramet.images.cpio import FileTree
from ramet.images.elf import section
from ramet.units import MIB

BOOT_MODULES: Final = ("virtio_pci", "virtio_console")
"""Modules that the agent loads before it can speak to the host. Their dependencies come with them."""
BOOT_MODULES_IF_THERE: Final = (
    "virtio_blk",
    "virtio_mmio",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
)
"""Modules that the agent loads after `BOOT_MODULES`, if the kernel has them.

They are for data disks, and for the devices of a Firecracker guest. `vsock` comes before its transport,
because the agent listens in between.
"""
DISK_MODULES: Final = ("crc32c_generic", "ext4")
"""Modules that the agent loads only before it mounts a disk, unless they are built into the kernel.

ext4 asks for crc32c by name, so crc32c isn't among its dependencies.
"""
AVAILABLE_MODULES: Final = (
    *DISK_MODULES,
    "virtio_net",
    "overlay",
    "loop",
    "fuse",
)
"""Modules that `modprobe` in the guest can load. Those that the kernel doesn't have are left out silently."""

ROOT_MODULES: Final = ("crc32c_generic", "erofs", "overlay")
"""Modules that the agent loads before it mounts a container image's root, unless they are built in.

libcrc32c, which erofs needs, asks for crc32c by name.
"""
ROOT_MODULES_IF_THERE: Final = ("ext4", "virtio_net")
"""Modules that the agent loads after `ROOT_MODULES`, if the kernel has them."""
CONTAINER_MODULES: Final = (
    *AVAILABLE_MODULES,
    *("tun", "veth", "bridge", "br_netfilter", "macvlan", "dummy", "vxlan", "wireguard"),
    *(
        "nf_tables",
        "nf_conntrack",
        "nf_nat",
        "nf_log_syslog",
        "nft_ct",
        "nft_nat",
        "nft_chain_nat",
        "nft_masq",
    ),
    *("nft_redir", "nft_reject", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nft_limit"),
    *(
        "nft_log",
        "nft_numgen",
        "nft_hash",
        "nft_quota",
        "nft_fib",
        "nft_fib_inet",
        "nft_compat",
        "nft_counter",
    ),
    *("x_tables", "ip_tables", "ip6_tables", "xt_conntrack", "xt_MASQUERADE", "xt_addrtype", "xt_comment"),
    *("xt_nat", "xt_mark", "xt_tcpudp", "xt_multiport", "ipt_REJECT", "ip6t_REJECT"),
    *("iptable_filter", "iptable_nat", "ip6table_filter", "ip6table_nat"),
)
"""Modules that the kernel of a container image's guest loads when a program needs them."""
CACHED_MODULES: Final = (*ROOT_MODULES, *ROOT_MODULES_IF_THERE, *CONTAINER_MODULES)
"""Modules that a kernel in the cache has beside those for the boot."""

_MODULE_LIMIT_BYTES: Final = 64 * MIB
_FILE_NAME: Final = re.compile(r"(?P<stem>[A-Za-z0-9_+-]+)\.ko(?P<packed>\.xz|\.zst|\.gz)?")


class Module(NamedTuple):
    """A module, decompressed. `path` is relative to `/lib/modules/<version>`, as in modules.dep."""

    name: str
    path: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def module_name(path: str) -> str | None:
    """Return the kernel's name for a module's file, else None: `virtio-rng.ko.xz` is `virtio_rng`."""
    match = _FILE_NAME.fullmatch(path.rpartition("/")[2])
    return match["stem"].replace("-", "_") if match else None


class ModuleTree:
    """The modules of one kernel, each read when it is asked for and not before.

    `files` maps paths below `/lib/modules/<version>` to what reads them; `builtin` is the text of
    modules.builtin.
    """

    def __init__(self, files: Mapping[str, Callable[[], bytes]], builtin: str) -> None:
        self._files = {name: (path, read) for path, read in files.items() if (name := module_name(path))}
        self.builtin_text: Final = builtin
        self._builtin = {name for line in builtin.split() if (name := module_name(line))}
        self._loaded: dict[str, Module] = {}

    @classmethod
    def from_directory(cls, directory: Path) -> ModuleTree:
        """Read the tree in a `/lib/modules/<version>` or in a kernel of the cache. Raises `OSError`."""
        files = {
            str(path.relative_to(directory)): path.read_bytes
            for path in sorted((directory / "kernel").rglob("*.ko*"))
            if path.is_file()
        }
        return cls(files, (directory / "modules.builtin").read_text())

    def needed(self, roots: Iterable[str], *, optional: bool = False) -> list[Module]:
        """List `roots` and all their dependencies, in an order in which they can be loaded.

        Modules that are built into the kernel aren't listed. A module that is neither built in nor present
        raises `UnavailableError`, or with `optional` drops the root that needs it.
        """
        chosen: dict[str, Module] = {}
        for root in roots:
            try:
                closure = self._closure(root, ())
            except UnavailableError:
                if not optional:
                    raise
                continue
            chosen.update((name, module) for name, module in closure.items() if name not in chosen)
        return list(chosen.values())

    def needed_at_boot(self) -> list[Module]:
        """List the modules that the agent loads, in order.

        Raises `UnavailableError` when a module is missing without which no guest can speak.
        """
        needed = self.needed(BOOT_MODULES)
        names = {module.name for module in needed}
        return needed + [
            module for module in self.needed(BOOT_MODULES_IF_THERE, optional=True) if module.name not in names
        ]

    def needed_for_root(self) -> list[Module]:
        """List the modules that the agent loads before it mounts a container image's root, in order.

        Raises `UnavailableError` when the kernel has no EROFS or no overlay filesystem.
        """
        needed = {module.name: module for module in self.needed(ROOT_MODULES[:1], optional=True)}
        for module in (*self.needed(ROOT_MODULES[1:]), *self.needed(ROOT_MODULES_IF_THERE, optional=True)):
            needed.setdefault(module.name, module)
        return list(needed.values())

    def _closure(self, name: str, wanted_by: tuple[str, ...]) -> dict[str, Module]:
        if name in self._builtin:
            return {}
        if name in wanted_by:
            raise DamagedError(
                f"kernel modules depend on each other in a circle: {' → '.join((*wanted_by, name))}"
            )
        module = self._load(name, wanted_by)
        closure: dict[str, Module] = {}
        for dependency in module.depends:
            closure.update(self._closure(dependency, (*wanted_by, name)))
        closure[name] = module
        return closure

    def _load(self, name: str, wanted_by: tuple[str, ...]) -> Module:
        if name not in self._loaded:
            if name not in self._files:
                purpose = f", which {wanted_by[-1]} needs" if wanted_by else ""
                raise UnavailableError(f"the kernel has no {name}{purpose}: neither built in nor as a module")
            path, read = self._files[name]
            data = _unpacked(path, read())
            entries = list(read_modinfo(data))
            depends = next((value for key, value in entries if key == "depends"), "")
            self._loaded[name] = Module(
                name,
                re.sub(r"\.ko\.\w+$", ".ko", path),
                data,
                tuple(word.replace("-", "_") for word in depends.split(",") if word),
                tuple(value for key, value in entries if key == "alias"),
            )
        return self._loaded[name]


def read_modinfo(module: bytes) -> Iterator[tuple[str, str]]:
    """Yield the `key=value` entries of a module's .modinfo section.

    Raises `DamagedError` if it isn't a module.
    """
    for entry in section(module, b".modinfo").split(b"\0"):
        key, separator, value = entry.partition(b"=")
        if separator:
            yield key.decode("utf-8", "replace"), value.decode("utf-8", "replace")


def paths_in_guest(version: str, modules: Iterable[Module]) -> list[str]:
    """Return the paths at which `install` puts modules of a kernel."""
    return [f"/lib/modules/{version}/{module.path}" for module in modules]


def install(
    tree: FileTree, version: str, boot: list[Module], available: list[Module], builtin: str
) -> list[str]:
    """Add the modules and their index files to an initramfs. Returns the paths to load at boot, in order.

    Raises `ValueError` when a path can't be inside the initramfs; then the tree can't be used.
    """
    root = f"lib/modules/{version}"
    modules = {module.name: module for module in (*boot, *available)}
    for module in modules.values():
        tree.file(f"{root}/{module.path}", module.data)
    tree.file(
        f"{root}/modules.dep", "".join(sorted(_dep_line(module, modules) for module in modules.values()))
    )
    aliases = (f"alias {alias} {module.name}\n" for module in modules.values() for alias in module.aliases)
    tree.file(f"{root}/modules.alias", "".join(sorted(aliases)))
    tree.file(f"{root}/modules.builtin", builtin)
    return paths_in_guest(version, boot)


def _dep_line(module: Module, modules: Mapping[str, Module]) -> str:
    # modules.dep(5) leaves the order open. depmod puts a module before what it depends on, and busybox loads
    # a line from its end.
    order: list[str] = []

    def visit(name: str) -> None:
        for dependency in modules[name].depends:
            if dependency in modules and dependency not in order:
                visit(dependency)
                order.append(dependency)

    visit(module.name)
    return " ".join((f"{module.path}:", *(modules[name].path for name in reversed(order)))) + "\n"


def _unpacked(path: str, data: bytes) -> bytes:
    suffix = path.rpartition(".ko")[2]
    try:
        return decompress(suffix, data, limit_bytes=_MODULE_LIMIT_BYTES)
    except DamagedError as error:
        raise DamagedError(f"the kernel module {path} is damaged: {error.message}") from error
