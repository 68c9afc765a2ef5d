"""The image that boots guests of container images: its modules, and the kernels that can't be used for it."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from ramet.errors import UnavailableError
from ramet.images.container import container_boot_image
from ramet.images.linux import find_busybox
from tests.unit.images.kernel_formats import PT_NOTE, PVH_NOTE, make_bzimage, make_elf, make_module

VERSION = "6.12.0-test"
MODULES = {
    "virtio": "",
    "virtio_pci": "virtio",
    "virtio_console": "virtio",
    "libcrc32c": "",
    "erofs": "libcrc32c",
    "overlay": "",
    "nfnetlink": "",
    "nf_tables": "nfnetlink,libcrc32c",
    "tun": "",
    "soundcore": "",
}


@pytest.fixture(autouse=True)
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel in a setting. Returns the directory of its modules."""
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "own"
    (own / "modules" / "kernel").mkdir(parents=True)
    vmlinux = make_elf(segments=[(PT_NOTE, PVH_NOTE)])
    (own / "bzImage").write_bytes(make_bzimage(gzip.compress(vmlinux, mtime=0), version=VERSION))
    (own / "modules" / "modules.builtin").write_text(
        "kernel/fs/ext4/ext4.ko\nkernel/crypto/crc32c_generic.ko\n"
    )
    for name, depends in MODULES.items():
        (own / "modules" / "kernel" / f"{name}.ko").write_bytes(make_module(name, depends=depends))
    monkeypatch.setenv("RAMET_KERNEL", str(own / "bzImage"))
    return own / "modules" / "kernel"


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "agent"
    path.write_bytes(make_elf())
    return path


def files_of(archive: Path, into: Path) -> Path:
    into.mkdir()
    command = [str(find_busybox()), "cpio", "-i", "-d"]
    # Device nodes need root; no test looks at them.
    subprocess.run(
        command, cwd=into, input=archive.read_bytes(), capture_output=True, timeout=20, check=False
    )
    return into


def test_modules_of_the_root_are_loaded_at_boot_and_the_others_when_they_are_needed(
    agent: Path, tmp_path: Path
) -> None:
    image = container_boot_image(lambda: agent)
    assert image.initramfs is not None
    root = files_of(image.initramfs, tmp_path / "root")
    loaded = [Path(line).stem for line in (root / "etc/ramet/modules").read_text().split()]
    assert loaded == ["virtio", "virtio_pci", "virtio_console", "libcrc32c", "erofs", "overlay"]
    index = (root / f"lib/modules/{VERSION}/modules.dep").read_text()
    assert "kernel/nf_tables.ko: kernel/libcrc32c.ko kernel/nfnetlink.ko\n" in index
    assert "kernel/tun.ko:" in index
    assert "soundcore" not in index
    assert sorted(path.name for path in (root / "bin").iterdir()) == ["busybox", "sh"]
    assert (root / "sbin/modprobe").readlink() == Path("/bin/busybox")
    assert container_boot_image(lambda: agent) == image


@pytest.mark.parametrize("missing", ["erofs", "overlay", "libcrc32c"])
def test_a_kernel_that_cannot_mount_an_image_is_named_with_a_way_out(
    missing: str, kernel: Path, agent: Path, tmp_path: Path
) -> None:
    (kernel / f"{missing}.ko").unlink()
    with pytest.raises(UnavailableError) as caught:
        container_boot_image(lambda: agent)
    assert VERSION in caught.value.message
    assert missing in caught.value.message
    assert caught.value.hint is not None
    assert f"linux-modules-extra-{VERSION}" in caught.value.hint
    assert "ramet kernel add" in caught.value.hint
    assert not list((tmp_path / "cache").rglob("container-*"))
