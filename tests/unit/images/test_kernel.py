"""Which kernel is taken, and taking one out of a Debian package."""

from __future__ import annotations

import gzip
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.errors import DamagedError, UnavailableError, UsageError
from ramet.images.kernel import add_kernel_package, find_kernel, list_kernels
from ramet.images.kernel_gaps import gaps, has_generation_id
from tests.unit.images.kernel_formats import PT_NOTE, PVH_NOTE, make_bzimage, make_deb, make_elf, make_module

ELF = make_elf(segments=[(PT_NOTE, PVH_NOTE)])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAMET_KERNEL", raising=False)
    return tmp_path / "cache"


def kernel_of(version: str) -> bytes:
    return make_bzimage(gzip.compress(ELF, mtime=0), version=version)


def package_files(version: str, *, prefix: str = "./") -> dict[str, bytes]:
    modules = f"{prefix}lib/modules/{version}"
    return {
        f"{prefix}boot/vmlinuz-{version}": kernel_of(version),
        f"{prefix}boot/config-{version}": b"CONFIG_X=y",
        f"{modules}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
        f"{modules}/kernel/drivers/virtio/virtio.ko": make_module("virtio"),
        f"{modules}/kernel/drivers/virtio/virtio_pci.ko": make_module("virtio_pci", depends="virtio"),
        f"{modules}/kernel/drivers/char/virtio_console.ko": make_module("virtio_console", depends="virtio"),
        f"{modules}/kernel/sound/soundcore.ko": make_module("soundcore"),
    }


def test_package_gives_kernel_and_the_modules_that_matter(tmp_path: Path, cache: Path) -> None:
    kernel = add_kernel_package(make_deb(tmp_path / "k.deb", package_files("6.1.0-1-cloud-amd64")))
    assert kernel.version == "6.1.0-1-cloud-amd64"
    assert kernel.vmlinuz.read_bytes() == kernel_of("6.1.0-1-cloud-amd64")
    assert kernel.modules_dir is not None
    names = {path.name for path in kernel.modules_dir.rglob("*.ko")}
    assert names == {"virtio.ko", "virtio_pci.ko", "virtio_console.ko"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.rglob("*") if path.is_file()} == {0o444}
    assert find_kernel() == kernel


def test_adding_again_changes_nothing(tmp_path: Path) -> None:
    package = make_deb(tmp_path / "k.deb", package_files("6.1.0-1"))
    first = add_kernel_package(package)
    before = first.vmlinuz.stat()
    assert add_kernel_package(package) == first
    assert first.vmlinuz.stat() == before


def test_paths_in_the_archive_are_not_believed(tmp_path: Path, cache: Path) -> None:
    files = package_files("6.1.0-1") | {
        "../../../escaped": b"x",
        "/absolute": b"x",
        "./lib/modules/6.1.0-1/kernel/../../../../escaped.ko": make_module("escaped"),
        "./boot/vmlinuz-..": b"x",
    }
    links = {"./lib/modules/6.1.0-1/kernel/virtio_blk.ko": "/etc/passwd"}
    kernel = add_kernel_package(make_deb(tmp_path / "k.deb", files, links=links))
    assert kernel.version == "6.1.0-1"
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name or "virtio_blk" in path.name]
    assert [path.name for path in (cache / "kernels").iterdir()] == ["6.1.0-1"]


def test_a_module_path_that_leads_upwards_stays_inside(tmp_path: Path) -> None:
    files = package_files("6.1.0-1")
    files["./lib/modules/6.1.0-1/kernel/../../../virtio_blk.ko"] = make_module("virtio_blk")
    add_kernel_package(make_deb(tmp_path / "k.deb", files))
    assert not list(tmp_path.rglob("virtio_blk.ko"))


def test_kernel_and_modules_in_two_packages(tmp_path: Path) -> None:
    files = package_files("6.8.0-31-generic", prefix="./usr/")
    kernel = {"./boot/vmlinuz-6.8.0-31-generic": kernel_of("6.8.0-31-generic")}
    modules = {name: data for name, data in files.items() if "/lib/" in name}
    image = make_deb(tmp_path / "image.deb", kernel)
    with pytest.raises(UsageError, match="no modules") as caught:
        add_kernel_package(image)
    assert caught.value.hint == "give it together with linux-modules-6.8.0-31-generic"
    added = add_kernel_package(image, make_deb(tmp_path / "modules.deb", modules))
    assert added.version == "6.8.0-31-generic"


def test_a_metapackage_names_the_package_that_it_leads_to(tmp_path: Path) -> None:
    control = (
        b"Package: linux-image-cloud-amd64\nDepends: linux-image-6.12.9-cloud-amd64 (= 6.12.9-1),\n libc6\n"
    )
    meta = make_deb(tmp_path / "meta.deb", {"./usr/share/doc/x": b"x"}, control=control)
    with pytest.raises(UsageError, match="no kernels") as caught:
        add_kernel_package(meta)
    assert caught.value.hint == "a metapackage only names others: give linux-image-6.12.9-cloud-amd64"


def test_a_kernel_in_three_packages_names_those_that_are_missing(tmp_path: Path) -> None:
    version = "7.3.4-cloud-amd64"
    files = package_files(version, prefix="./usr/")
    control = (
        f"Package: linux-image-{version}\nPre-Depends: linux-base (>= 4.12~)\n"
        f"Depends: kmod, linux-base-{version} (= 1), linux-modules-{version} (= 1) | other\n"
    )
    image = make_deb(
        tmp_path / "image.deb", {f"./boot/vmlinuz-{version}": kernel_of(version)}, control=control.encode()
    )
    base = make_deb(
        tmp_path / "base.deb",
        {name: data for name, data in files.items() if "builtin" in name or "config" in name},
        control=f"Package: linux-base-{version}\n".encode(),
    )
    modules = make_deb(
        tmp_path / "modules.deb",
        {name: data for name, data in files.items() if name.endswith(".ko")},
        control=f"Package: linux-modules-{version}\n".encode(),
    )
    for given, missing in {
        (image,): f"linux-base-{version} and linux-modules-{version}",
        (image, base): f"linux-modules-{version}",
        (image, modules): f"linux-base-{version}",
    }.items():
        with pytest.raises(UsageError) as caught:
            add_kernel_package(*given)
        assert caught.value.hint == f"give it together with {missing}"
    assert add_kernel_package(image, base, modules).version == version


def test_a_kernel_says_what_it_lacks(tmp_path: Path) -> None:
    old = add_kernel_package(make_deb(tmp_path / "old.deb", package_files("6.1.0-1")))
    assert gaps(old) == [
        "container images",
        "networks",
        "nftables",
        "VMGenID",
        "user.* attributes on a root in RAM",
    ]
    assert not has_generation_id(old)
    files = package_files("6.12.0-1")
    root = "./lib/modules/6.12.0-1"
    files[f"{root}/modules.builtin"] += b"kernel/drivers/virt/vmgenid.ko\nkernel/fs/overlayfs/overlay.ko\n"
    for name in ("erofs", "virtio_net", "nf_tables"):
        files[f"{root}/kernel/{name}.ko"] = make_module(name)
    new = add_kernel_package(make_deb(tmp_path / "new.deb", files))
    assert gaps(new) == []
    assert has_generation_id(new)


def _cut(package: Path) -> None:
    package.write_bytes(package.read_bytes()[:-40])


def _flip(package: Path) -> None:
    data = bytearray(package.read_bytes())
    data[-200] ^= 0xFF
    package.write_bytes(data)


def _replace(package: Path) -> None:
    package.write_bytes(b"PK\x03\x04 something else")


@pytest.mark.parametrize("damage", [_cut, _flip, _replace])
def test_damaged_package_adds_nothing(damage: Callable[[Path], None], tmp_path: Path, cache: Path) -> None:
    package = make_deb(tmp_path / "k.deb", package_files("6.1.0-1"))
    damage(package)
    with pytest.raises(DamagedError):
        add_kernel_package(package)
    assert not list(cache.rglob("*"))


def test_packages_that_hold_no_usable_kernel(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UsageError, match="no kernels in meta"):
        add_kernel_package(make_deb(tmp_path / "meta.deb", {"./usr/share/doc/x": b"x"}))
    lying = package_files("6.1.0-1") | {"./boot/vmlinuz-6.1.0-1": kernel_of("5.0.0")}
    with pytest.raises(DamagedError, match=r"not the 6\.1\.0-1"):
        add_kernel_package(make_deb(tmp_path / "lying.deb", lying))
    bare = {name: data for name, data in package_files("6.1.0-1").items() if "virtio_console" not in name}
    with pytest.raises(UnavailableError, match="no virtio_console"):
        add_kernel_package(make_deb(tmp_path / "bare.deb", bare))
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_the_newest_in_the_cache_is_taken(tmp_path: Path) -> None:
    for version in ("6.9.0-1", "6.10.0-2", "6.10.0-1"):
        add_kernel_package(make_deb(tmp_path / f"{version}.deb", package_files(version)))
    assert find_kernel().version == "6.10.0-2"
    listed = [kernel.version for kernel in list_kernels(boot=tmp_path / "none")]
    assert listed == ["6.10.0-2", "6.10.0-1", "6.9.0-1"]


def test_kernels_of_the_host(tmp_path: Path) -> None:
    boot, modules = tmp_path / "boot", tmp_path / "modules"
    boot.mkdir()
    for version in ("6.12.0-amd64", "6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "7.0.0-without-modules"):
        (boot / f"vmlinuz-{version}").write_bytes(kernel_of(version))
        if "without" not in version:
            (modules / version).mkdir(parents=True)
            (modules / version / "modules.builtin").write_text("")
    found = list_kernels(boot=boot, modules=modules)
    assert [kernel.version for kernel in found] == [
        "6.1.0-10-cloud-amd64",
        "6.1.0-9-cloud-amd64",
        "6.12.0-amd64",
    ]
    assert {kernel.source for kernel in found} == {"host"}


def test_setting_wins_and_brings_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_kernel_package(make_deb(tmp_path / "k.deb", package_files("9.9.9")))
    (tmp_path / "own").mkdir()
    chosen = tmp_path / "own" / "bzImage"
    chosen.write_bytes(kernel_of("5.10.1-own"))
    monkeypatch.setenv("RAMET_KERNEL", str(chosen))
    assert (find_kernel().version, find_kernel().modules_dir) == ("5.10.1-own", None)
    (tmp_path / "own" / "modules").mkdir()
    (tmp_path / "own" / "modules" / "modules.builtin").write_text("")
    assert find_kernel().modules_dir == tmp_path / "own" / "modules"


def test_a_setting_that_is_no_kernel_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_kernel_package(make_deb(tmp_path / "k.deb", package_files("9.9.9")))
    monkeypatch.setenv("RAMET_KERNEL", str(tmp_path / "absent"))
    with pytest.raises(UnavailableError, match="RAMET_KERNEL"):
        find_kernel()


def test_none_at_all_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramet.images.kernel.list_kernels", list)
    with pytest.raises(UnavailableError) as caught:
        find_kernel()
    assert caught.value.hint is not None
    for step in ("make setup", "RAMET_KERNEL", "ramet kernel add"):
        assert step in caught.value.hint
