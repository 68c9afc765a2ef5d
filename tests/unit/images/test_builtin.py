"""The built-in image: made once, the same wherever it is made, found again quickly, and it boots."""

from __future__ import annotations

import gzip
import os
import stat
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from ramet import config
from ramet.errors import NotFoundError, UnavailableError
from ramet.images.builtin import build_builtin
from ramet.images.image import Image
from ramet.images.kernel import Kernel, find_kernel
from ramet.images.linux import find_busybox
from ramet.images.resolve import resolve_image
from tests.unit.images.kernel_formats import PT_INTERP, PT_NOTE, PVH_NOTE, make_bzimage, make_elf, make_module

VMLINUX = make_elf(segments=[(PT_NOTE, PVH_NOTE)])


@pytest.fixture(scope="session")
def real_kernel() -> Kernel:
    """This machine's own kernel for guests, looked up before a test points the cache elsewhere."""
    try:
        return find_kernel()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    vmlinuz, modules = tmp_path / "vmlinuz", tmp_path / "modules"
    vmlinuz.write_bytes(make_bzimage(gzip.compress(VMLINUX)))
    (modules / "kernel").mkdir(parents=True)
    (modules / "modules.builtin").write_text("kernel/fs/ext4.ko\n")
    for name, depends in {
        "virtio": "",
        "virtio_pci": "virtio",
        "virtio_console": "virtio",
        "loop": "",
    }.items():
        (modules / "kernel" / f"{name}.ko").write_bytes(make_module(name, depends=depends))
    return Kernel("6.1.0-test", vmlinuz, modules, "setting")


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "agent"
    path.write_bytes(make_elf())
    return path


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A program that lists what busybox could list at worst."""
    path = tmp_path / "busybox"
    listed = "bin/sh sbin/modprobe 'usr/bin/[' ../../etc/x /abs linuxrc init bin/busybox"
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' {listed}\n")
    path.chmod(0o755)
    return path


def initramfs_of(image: Image) -> Path:
    assert image.initramfs is not None
    return image.initramfs


def names_in(image: Image) -> list[str]:
    listed = subprocess.run(
        [find_busybox(), "cpio", "-t"],
        input=initramfs_of(image).read_bytes(),
        capture_output=True,
        check=True,
        timeout=20,
    )
    return listed.stdout.decode().splitlines()


def test_what_is_in_it(kernel: Kernel, agent: Path, busybox: Path) -> None:
    image = build_builtin(kernel, agent, busybox)
    assert image.kernel.read_bytes() == VMLINUX
    assert (image.kernel.name, image.pvh, image.kernel_note) == ("vmlinux", True, None)
    names = names_in(image)
    assert {"init", "bin/sh", "sbin/modprobe", "usr/bin/[", "etc/ramet/modules", "dev/console", "tmp"} <= set(
        names
    )
    assert "lib/modules/6.1.0-test/kernel/loop.ko" in names
    assert not [name for name in names if name.startswith(("..", "/")) or name in {"linuxrc", "abs"}]
    order = "".join(
        f"/lib/modules/6.1.0-test/kernel/{name}.ko\n" for name in ("virtio", "virtio_pci", "virtio_console")
    )
    assert order.encode() in initramfs_of(image).read_bytes()


def test_parts_are_read_only_and_manifest_tells_the_truth(kernel: Kernel, agent: Path, busybox: Path) -> None:
    image = build_builtin(kernel, agent, busybox)
    for path in image.directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o444, path
    manifest = msgspec.json.decode((image.directory / "image.json").read_bytes())
    assert manifest["initramfs_bytes"] == initramfs_of(image).stat().st_size
    assert not [value for value in manifest.values() if isinstance(value, str) and value.startswith("/")]


def test_the_same_elsewhere_and_later(
    kernel: Kernel, agent: Path, busybox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_builtin(kernel, agent, busybox)
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "other"))
    os.utime(agent, (1, 1))
    second = build_builtin(kernel, agent, busybox)
    assert second.directory != first.directory
    assert second.key == first.key
    assert initramfs_of(second).read_bytes() == initramfs_of(first).read_bytes()


@pytest.mark.deep
@pytest.mark.timing
@pytest.mark.alone
def test_found_again_without_reading_the_ingredients(kernel: Kernel, agent: Path, busybox: Path) -> None:
    first = build_builtin(kernel, agent, busybox)
    accessed = {path: path.stat().st_ino for path in first.directory.iterdir()}
    started = time.perf_counter()
    for _ in range(20):
        assert build_builtin(kernel, agent, busybox) == first
    assert (time.perf_counter() - started) / 20 < 0.02
    assert {path: path.stat().st_ino for path in first.directory.iterdir()} == accessed


def test_another_agent_of_the_same_size_and_time_is_noticed(
    kernel: Kernel, agent: Path, busybox: Path
) -> None:
    first = build_builtin(kernel, agent, busybox)
    before = agent.stat()
    changed = bytearray(agent.read_bytes())
    changed[-1] ^= 1
    agent.write_bytes(changed)
    os.utime(agent, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = build_builtin(kernel, agent, busybox)
    assert second.key != first.key
    assert second.agent_digest != first.agent_digest
    assert initramfs_of(first).is_file(), "the older image stays for those who boot it"


def test_damaged_image_is_made_again_and_links_to_the_old_live_on(
    kernel: Kernel, agent: Path, busybox: Path, tmp_path: Path
) -> None:
    first = build_builtin(kernel, agent, busybox)
    whole = initramfs_of(first).read_bytes()
    (tmp_path / "fork").hardlink_to(first.kernel)
    initramfs_of(first).chmod(0o644)
    initramfs_of(first).write_bytes(b"cut")
    again = build_builtin(kernel, agent, busybox)
    assert initramfs_of(again).read_bytes() == whole
    assert (tmp_path / "fork").read_bytes() == VMLINUX


def test_nothing_temporary_is_left(kernel: Kernel, agent: Path, busybox: Path, cache: Path) -> None:
    build_builtin(kernel, agent, busybox)
    assert not list(cache.rglob(".making-*"))


def test_two_processes_at_once_agree(kernel: Kernel, agent: Path, busybox: Path) -> None:
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                build_builtin(kernel, agent, busybox)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    image = build_builtin(kernel, agent, busybox)
    assert [path.name for path in image.directory.parent.glob("builtin-*")] == [image.directory.name]


def test_kernel_that_does_not_unpack_is_booted_as_it_is(tmp_path: Path, agent: Path, busybox: Path) -> None:
    vmlinuz = tmp_path / "lzo"
    vmlinuz.write_bytes(make_bzimage(b"\x89LZO" + bytes(100)))
    image = build_builtin(Kernel("6.1.0-lzo", vmlinuz, None, "setting"), agent, busybox)
    assert (image.kernel.name, image.pvh) == ("vmlinuz", False)
    assert image.kernel.read_bytes() == vmlinuz.read_bytes()
    assert image.kernel_note is not None
    assert "compression" in image.kernel_note
    assert "etc/ramet/modules" in names_in(image)


def test_programs_that_cannot_run_in_the_guest(
    kernel: Kernel, agent: Path, busybox: Path, tmp_path: Path
) -> None:
    dynamic = tmp_path / "dynamic"
    dynamic.write_bytes(make_elf(segments=[(PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0")]))
    with pytest.raises(UnavailableError, match="no static x86-64") as caught:
        build_builtin(kernel, agent, dynamic)
    assert "busybox-static" in str(caught.value)
    foreign = tmp_path / "foreign"
    foreign.write_bytes(make_elf(machine=183))
    with pytest.raises(UnavailableError, match="no static x86-64"):
        build_builtin(kernel, foreign, busybox)
    with pytest.raises(UnavailableError, match="make setup"):
        build_builtin(kernel, tmp_path / "absent", busybox)


def never() -> Path:
    raise AssertionError("this image has no use for it")


def test_unknown_image_suggests(agent: Path) -> None:
    with pytest.raises(NotFoundError) as near:
        resolve_image("bultin", lambda: agent, never)
    assert near.value.hint == "did you mean builtin?"
    with pytest.raises(NotFoundError) as far:
        resolve_image("debian:12", lambda: agent, never)
    assert far.value.hint == "there is: builtin, probe"


INIT = """#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
while read -r module; do insmod "$module" || echo "FAILED $module"; done </etc/ramet/modules
echo "VERSION $(uname -r)" "PORTS $(ls /sys/class/virtio-ports)"
for module in virtio_blk virtio_net virtio_rng ext4 overlay loop vmw_vsock_virtio_transport; do
    modprobe "$module" && echo "LOADED $module"
done
rmmod overlay
mkdir /a /b /c /d && mount -t overlay -o lowerdir=/a,upperdir=/b,workdir=/c none /d && echo LOADED by alias
ls -ld /tmp | cut -c1-10; su nobody -s /bin/sh -c id
echo o >/proc/sysrq-trigger; sleep 20
"""


@pytest.mark.vm
def test_it_boots_and_modprobe_works(real_kernel: Kernel, tmp_path: Path) -> None:
    script = tmp_path / "init"
    script.write_text(INIT)
    image = build_builtin(real_kernel, script, find_busybox())
    said = subprocess.run(
        [
            *(config.qemu_binary(), "-accel", "tcg", "-machine", "pc", "-cpu", "max", "-m", "256M"),
            *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
            *("-device", "virtio-serial", "-device", "virtserialport,name=org.ramet.0"),
            *("-kernel", image.kernel, "-initrd", initramfs_of(image)),
            *("-append", "console=ttyS0 no_timer_check panic=-1 quiet"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=90,
        check=True,
    ).stdout.decode("utf-8", "replace")
    assert f"VERSION {real_kernel.version} PORTS vport" in said
    assert "FAILED" not in said
    assert said.count("LOADED") == 8, said
    assert "drwxrwxrwt" in said
    assert "uid=65534(nobody)" in said
