"""Choosing modules: dependencies first, built-in ones left out, and index files for modprobe."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import zstandard

from ramet.errors import DamagedError, UnavailableError
from ramet.images.cpio import FileTree
from ramet.images.modules import ModuleTree, install, module_name, read_modinfo
from tests.unit.images.kernel_formats import make_elf, make_module


def tree_of(modules: Mapping[str, bytes], builtin: str = "") -> ModuleTree:
    return ModuleTree({path: partial(bytes, data) for path, data in modules.items()}, builtin)


VIRTIO = {
    "kernel/d/virtio_ring.ko.xz": lzma.compress(make_module("virtio_ring")),
    "kernel/d/virtio.ko.zst": zstandard.compress(make_module("virtio", depends="virtio_ring")),
    "kernel/d/virtio_pci.ko.gz": gzip.compress(make_module("virtio_pci", depends="virtio_ring,virtio")),
    "kernel/d/virtio-rng.ko": make_module("virtio_rng", depends="virtio", aliases=["virtio:d00000004v*"]),
}


def test_dependencies_come_first_and_once() -> None:
    chosen = tree_of(VIRTIO).needed(["virtio_pci", "virtio_rng"])
    assert [module.name for module in chosen] == ["virtio_ring", "virtio", "virtio_pci", "virtio_rng"]
    assert [module.path for module in chosen][:2] == ["kernel/d/virtio_ring.ko", "kernel/d/virtio.ko"]
    assert all(module.data.startswith(b"\x7fELF") for module in chosen)


def test_builtin_is_left_out_with_what_only_it_needs() -> None:
    tree = tree_of(VIRTIO, "kernel/d/virtio.ko\nkernel/d/ext4.ko\n")
    assert [module.name for module in tree.needed(["virtio_rng", "ext4"])] == ["virtio_rng"]


def test_what_is_missing_is_named_or_left_out() -> None:
    tree = tree_of({"kernel/fuse.ko": make_module("fuse", depends="gone")})
    with pytest.raises(UnavailableError, match="gone, which fuse needs"):
        tree.needed(["fuse"])
    assert tree.needed(["fuse", "absent"], optional=True) == []


VSOCK = {
    "kernel/d/virtio_console.ko": make_module("virtio_console", depends="virtio_ring,virtio"),
    "kernel/d/virtio_mmio.ko": make_module("virtio_mmio", depends="virtio,virtio_ring"),
    "kernel/n/vsock.ko": make_module("vsock"),
    "kernel/n/vmw_vsock_virtio_transport_common.ko": make_module(
        "vmw_vsock_virtio_transport_common", depends="vsock"
    ),
    "kernel/n/vmw_vsock_virtio_transport.ko": make_module(
        "vmw_vsock_virtio_transport", depends="vmw_vsock_virtio_transport_common,virtio,vsock"
    ),
}


def test_at_boot_the_agent_can_listen_before_there_is_a_transport() -> None:
    names = [module.name for module in tree_of(VIRTIO | VSOCK).needed_at_boot()]
    assert names == [
        *("virtio_ring", "virtio", "virtio_pci", "virtio_console", "virtio_mmio"),
        *("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport", "virtio_rng"),
    ]


def test_at_boot_a_kernel_needs_no_vsock() -> None:
    without = {path: module for path, module in VSOCK.items() if "/n/" not in path}
    names = [module.name for module in tree_of(VIRTIO | without).needed_at_boot()]
    assert names == ["virtio_ring", "virtio", "virtio_pci", "virtio_console", "virtio_mmio", "virtio_rng"]
    built_in = tree_of(VIRTIO | VSOCK, "kernel/n/vsock.ko\nkernel/d/virtio.ko\nkernel/d/virtio_mmio.ko\n")
    assert [module.name for module in built_in.needed_at_boot()][-3:] == [
        "vmw_vsock_virtio_transport_common",
        "vmw_vsock_virtio_transport",
        "virtio_rng",
    ]
    with pytest.raises(UnavailableError, match="virtio_console"):
        tree_of(VIRTIO).needed_at_boot()


def test_circle_is_damage_not_recursion() -> None:
    tree = tree_of(
        {"kernel/a.ko": make_module("a", depends="b"), "kernel/b.ko": make_module("b", depends="a")}
    )
    with pytest.raises(DamagedError, match="circle"):
        tree.needed(["a"], optional=True)


@pytest.mark.parametrize("name", ["kernel/x.ko.xz", "kernel/x.ko.zst", "kernel/x.ko.gz", "kernel/x.ko"])
def test_broken_module_is_damaged(name: str) -> None:
    with pytest.raises(DamagedError):
        tree_of({name: b"not at all a module"}).needed(["x"])


@pytest.mark.parametrize("name", ["kernel/x.ko.xz", "kernel/x.ko.zst", "kernel/x.ko.gz"])
def test_cut_module_is_damaged(name: str) -> None:
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".xz": lzma.compress,
        ".zst": zstandard.compress,
        ".gz": gzip.compress,
    }
    pack = packers[Path(name).suffix]
    whole = pack(make_module("x", aliases=[f"alias{n}" for n in range(300)]))
    with pytest.raises(DamagedError):
        tree_of({name: whole[: len(whole) // 2]}).needed(["x"])


def test_names() -> None:
    assert module_name("kernel/drivers/char/hw_random/virtio-rng.ko.zst") == "virtio_rng"
    assert module_name("kernel/Makefile") is None
    assert list(read_modinfo(make_elf())) == []


def test_index_files() -> None:
    tree = FileTree()
    found = tree_of(VIRTIO)
    boot = found.needed(["virtio_pci"])
    paths = install(tree, "6.1.0", boot, found.needed(["virtio_rng"]), found.builtin_text)
    assert paths == [
        f"/lib/modules/6.1.0/kernel/d/{name}.ko" for name in ("virtio_ring", "virtio", "virtio_pci")
    ]
    packed = tree.pack()
    assert b"kernel/d/virtio_pci.ko: kernel/d/virtio.ko kernel/d/virtio_ring.ko\n" in packed
    assert b"kernel/d/virtio_ring.ko:\n" in packed
    assert b"alias virtio:d00000004v* virtio_rng\n" in packed
