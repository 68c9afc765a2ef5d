"""Roots of container images' guests: their devices, the words to the agent, and files that aren't theirs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ramet.drivers.firecracker.driver import Firecracker
from ramet.drivers.interface import Driver
from ramet.drivers.qemu.driver import Qemu
from ramet.engine.lifecycle.mounts import require_mounted
from ramet.engine.lifecycle.roots import Container, disk_sizes, link_bases, require_bases, with_root
from ramet.errors import DamagedError, GuestError, UsageError
from ramet.images.erofs.blob import mark
from ramet.images.library.records import FORMAT, ContainerImage, ImageRecord
from ramet.model.container import ImageConfig, MainProcess
from ramet.model.record import Base, Machine, Record
from ramet.model.rootfs import Rootfs, parse_rootfs
from ramet.paths import CONSOLE_LOG
from ramet.units import GIB, MIB
from tests.support.stored_homes import record

CONTENTS = (b"own file".ljust(8192, b"\1"), b"a layer".ljust(4096, b"\2"))


def base_of(number: int, content: bytes) -> Base:
    return Base(
        name=f"base{number}",
        file=f"base{number}.erofs",
        blocks=len(content) // 4096,
        digest=hashlib.sha256(content).hexdigest(),
    )


@pytest.fixture
def image(tmp_path: Path) -> ContainerImage:
    """An image whose two files are there."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    bases = tuple(base_of(number, content) for number, content in enumerate(CONTENTS))
    record = ImageRecord(
        format=FORMAT,
        digest=f"sha256:{'1' * 64}",
        config=ImageConfig(),
        layers=(),
        bases=bases,
        source="a test",
        created_at="2030-01-01T00:00:00Z",
        inodes=1,
    )
    made = ContainerImage(name="app:1", record=record, blobs=blobs)
    for base, content in zip(bases, CONTENTS, strict=True):
        made.path_of(base).write_bytes(content + mark(base.blocks, base.digest))
    return made


def machine_of(driver: Driver, container: Container, disks: int = 1) -> Machine:
    """The machine for the container, after so many data disks."""
    machine = driver.machine(
        accelerator="tcg",
        memory_bytes=256 * MIB,
        cpus=1,
        disk_bytes=(MIB,) * disks + disk_sizes(container),
    )
    data, root = machine.disks[:disks], machine.disks[disks:]
    machine = msgspec.structs.replace(machine, disks=data)
    return with_root(machine, root[0] if root else None, container)


def words_of(machine: Machine) -> list[str]:
    return [word for word in machine.kernel_arguments.split() if word.startswith("ramet.")]


@pytest.mark.parametrize(
    ("driver", "file"),
    [(Qemu().as_of("7.2.22"), "root-0.qcow2"), (Firecracker().as_of("1.12.1"), "root.raw")],
)
def test_a_root_disk_lies_behind_the_data_disks_and_the_image_behind_both(
    driver: Driver, file: str, image: ContainerImage
) -> None:
    container = Container(image, MainProcess(argv=("x",)))
    machine = machine_of(driver, container, disks=2)
    assert [disk.name for disk in machine.disks] == ["disk", "disk1", "root"]
    root = machine.disks[-1]
    assert (root.file, root.path, root.size_bytes) == (file, "/", 10 * GIB)
    assert machine.bases == image.bases
    first, second = (base.digest[:32] for base in image.bases)
    assert [word for word in words_of(machine) if not word.startswith("ramet.power")] == [
        f"ramet.base=3,base0:2:{first}",
        f"ramet.base=4,base1:1:{second}",
        "ramet.root=disk:2,root",
    ]


def test_a_root_in_ram_has_a_size_and_no_disk(image: ContainerImage) -> None:
    for text, size in (("ram:64M", 64 * MIB), ("ram", 128 * MIB), ("ram:256M", 256 * MIB)):
        container = Container(image, MainProcess(argv=("x",)), parse_rootfs(text))
        machine = machine_of(Qemu().as_of("7.2.22"), container, disks=0)
        assert machine.disks == ()
        assert words_of(machine)[-1] == f"ramet.root=ram:{size}"
        assert words_of(machine)[0].startswith("ramet.base=0,base0:")


def test_a_root_that_is_larger_than_the_guests_memory_is_refused(image: ContainerImage) -> None:
    container = Container(image, MainProcess(argv=("x",)), Rootfs("ram", 257 * MIB))
    with pytest.raises(UsageError, match=r"257.*256") as raised:
        machine_of(Qemu().as_of("7.2.22"), container)
    assert "--rootfs disk" in (raised.value.hint or "")


def test_a_command_line_that_is_too_long_is_refused(image: ContainerImage) -> None:
    driver = Qemu().as_of("7.2.22")
    machine = driver.machine(accelerator="tcg", memory_bytes=256 * MIB, cpus=1)
    machine = msgspec.structs.replace(machine, kernel_arguments="x" * 1950)
    with pytest.raises(UsageError, match="command line would have"):
        with_root(machine, None, Container(image, MainProcess(argv=("x",)), Rootfs("ram")))


def test_an_instance_gets_links(image: ContainerImage, tmp_path: Path) -> None:
    directory = tmp_path / "instance"
    directory.mkdir()
    link_bases(directory, image)
    for base in image.bases:
        assert (directory / base.file).samefile(image.path_of(base))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(4096))


def remove(path: Path) -> None:
    path.unlink()


def another(path: Path) -> None:
    content = b"another".ljust(len(path.read_bytes()) - 4096, b"\3")
    path.write_bytes(content + mark(len(content) // 4096, hashlib.sha256(content).hexdigest()))


def a_link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [cut, longer, remove, another, a_link, a_directory])
@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_file_of_an_image_is_named(
    damage: Callable[[Path], None], number: int, image: ContainerImage, tmp_path: Path
) -> None:
    directory = tmp_path / "instance"
    directory.mkdir()
    path = image.path_of(image.bases[number])
    damage(path)
    with pytest.raises(DamagedError, match="the image app:1 is damaged") as raised:
        link_bases(directory, image)
    assert str(path) in raised.value.message
    assert "ramet pull app:1" in (raised.value.hint or "")
    assert not (directory / image.bases[number].file).exists()


def instance_of(image: ContainerImage) -> Record:
    machine = machine_of(Qemu().as_of("7.2.22"), Container(image, MainProcess(argv=("x",))))
    return msgspec.structs.replace(record("it", "1" * 12), image=image.name, machine=machine)


@pytest.mark.parametrize("damage", [cut, remove, another])
def test_an_instances_own_damaged_file_is_found_before_a_vmm_is_started(
    damage: Callable[[Path], None], image: ContainerImage, tmp_path: Path
) -> None:
    directory = tmp_path / "instance"
    directory.mkdir()
    link_bases(directory, image)
    require_bases(directory, instance_of(image))
    path = directory / "base1.erofs"
    path.write_bytes(content := path.read_bytes())
    assert content
    damage(path)
    with pytest.raises(DamagedError, match=r"it is damaged: .* app:1 .*base1\.erofs"):
        require_bases(directory, instance_of(image))


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        (
            "ramet: base base1 isn't what the image says: it is another image's or layer's",
            DamagedError,
            "the part `base1` isn't what its image app:1 says: it is another image's",
        ),
        (
            "ramet: the image can't be mounted: this kernel has no EROFS",
            GuestError,
            "the image can't be mounted: this kernel has no EROFS",
        ),
        ("ramet: the root disk can't be mounted: I/O error", GuestError, "root disk can't be mounted: I/O"),
    ],
)
def test_the_agents_reason_is_the_error(
    line: str, kind: type[Exception], words: str, image: ContainerImage, tmp_path: Path
) -> None:
    """Also behind the firmware's text, which ends in no line; the kernel's last words come after it."""
    (tmp_path / CONSOLE_LOG).write_text(
        f"SeaBIOS\r\nBooting from ROM..{line}\r\n[ 1.0] reboot: Power down\r\n"
    )
    with pytest.raises(kind, match=re.escape(words)):
        require_mounted(tmp_path, instance_of(image))
    (tmp_path / CONSOLE_LOG).write_text("ramet: something else: fine\n")
    require_mounted(tmp_path, instance_of(image))
