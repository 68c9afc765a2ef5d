"""Read-only devices in what each driver tells its VMM; and the limits of Firecracker's machines."""

from __future__ import annotations

import json

import msgspec
import pytest

from ramet.drivers.cloud_hypervisor import config as cloud_hypervisor_config
from ramet.drivers.cloud_hypervisor.driver import CloudHypervisor
from ramet.drivers.firecracker.driver import Firecracker
from ramet.drivers.interface import Driver
from ramet.drivers.qemu.driver import Qemu
from ramet.errors import DamagedError, UnavailableError
from ramet.model.record import Base, Machine
from ramet.units import MIB
from tests.unit.drivers.cloud_hypervisor_documents import saved_config

DRIVERS = (Qemu().as_of("7.2.22"), Firecracker().as_of("1.12.1"), CloudHypervisor().as_of("53.0.0"))


def bases(count: int) -> tuple[Base, ...]:
    return tuple(
        Base(name=f"base{number}", file=f"base{number}.erofs", blocks=2, digest="0" * 64)
        for number in range(count)
    )


def machine(driver: Driver, *, disks: int = 1, count: int = 2, arguments: str | None = None) -> Machine:
    made = driver.machine(accelerator="kvm", memory_bytes=64 * MIB, cpus=1, disk_bytes=(MIB,) * disks)
    made = msgspec.structs.replace(made, bases=bases(count))
    return made if arguments is None else msgspec.structs.replace(made, kernel_arguments=arguments)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)
def test_a_machine_without_them_has_the_arguments_that_it_had(driver: Driver) -> None:
    """Manifests of an older ramet hold the whole vector, and are compared with it."""
    text = json.dumps(driver.arguments(machine(driver, count=0)))
    assert "base" not in text
    assert "readonly" not in text.replace("readonly=on", "")
    assert driver.arguments(machine(driver, count=1)) != driver.arguments(machine(driver, count=0))
    assert driver.arguments(machine(driver, count=1)) != driver.arguments(machine(driver, count=2))


def test_qemu_has_them_behind_the_disks_read_only_and_under_their_names() -> None:
    arguments = Qemu().as_of("7.2.22").arguments(machine(DRIVERS[0], disks=2))
    devices = [word for word in arguments if word.startswith("virtio-blk-pci")]
    assert [dict(part.split("=") for part in device.split(",")[1:])["serial"] for device in devices] == [
        "disk",
        "disk1",
        "base0",
        "base1",
    ]
    assert [device.rpartition("addr=")[2] for device in devices] == ["0x5", "0x6", "0x7", "0x8"]
    documents = [json.loads(word) for word in arguments if word.startswith("{")]
    nodes = {node["node-name"]: node for node in documents}
    assert nodes["base1-file"] == {
        "driver": "file",
        "node-name": "base1-file",
        "filename": "base1.erofs",
        "read-only": True,
    }
    assert nodes["base1"] == {
        "driver": "raw",
        "node-name": "base1",
        "file": "base1-file",
        "read-only": True,
    }


def test_firecracker_has_them_behind_the_disks_read_only() -> None:
    (text,) = DRIVERS[1].arguments(machine(DRIVERS[1]))
    drives = json.loads(text)["drives"]
    assert [(drive["drive_id"], drive["path_on_host"], drive["is_read_only"]) for drive in drives] == [
        ("disk", "disk.raw", False),
        ("base0", "base0.erofs", True),
        ("base1", "base1.erofs", True),
    ]


@pytest.mark.parametrize(("numbers", "most"), [((1, 12), 16), ((1, 14), 16), ((1, 15), 15), ((1, 16), 15)])
def test_firecracker_refuses_more_devices_than_it_has_interrupts_for(
    numbers: tuple[int, int], most: int
) -> None:
    """Seen with 1.12.1, 1.15.1 and 1.16.1: 16, 15 and 15 drives beside vsock and entropy device; one more,
    and it ends with words about a resource.
    """
    driver = Firecracker().as_of("1.12.1")
    driver._refuse_too_much(machine(driver, disks=9, count=most - 9), numbers)
    with pytest.raises(UnavailableError, match=rf"{most + 2} devices at most.*{most + 3}: 10 disks"):
        driver._refuse_too_much(machine(driver, disks=10, count=most - 9), numbers)


@pytest.mark.parametrize(("disks", "count", "seen_bytes"), [(9, 6, 1432), (5, 2, 1720)])
def test_firecracker_refuses_arguments_that_do_not_fit_beside_its_own(
    disks: int, count: int, seen_bytes: int
) -> None:
    """Seen with 1.15.1 and 1.16.1: with 15 drives it takes 1,432 bytes, with 7 drives 1,720."""
    driver = Firecracker().as_of("1.15.1")
    fits = machine(driver, disks=disks, count=count, arguments="x" * (seen_bytes - 5))
    driver._refuse_too_much(fits, (1, 15))
    too_long = machine(driver, disks=disks, count=count, arguments="x" * (seen_bytes + 1))
    with pytest.raises(UnavailableError, match=r"kernel arguments .* Firecracker takes"):
        driver._refuse_too_much(too_long, (1, 15))


def test_cloud_hypervisor_has_them_behind_the_disks_read_only_and_finds_their_state() -> None:
    made = machine(DRIVERS[2])
    disks = cloud_hypervisor_config.vm_config(made, initramfs=True)["disks"]
    assert [(disk["id"], disk["path"], disk.get("readonly", False)) for disk in disks] == [
        ("disk", "disk.raw", False),
        ("base0", "base0.erofs", True),
        ("base1", "base1.erofs", True),
    ]
    assert {"base0", "base1"} <= cloud_hypervisor_config.device_ids(made)


@pytest.mark.parametrize("change", [{"readonly": False}, {"path": "disk.raw"}, {"id": "disk"}])
def test_cloud_hypervisor_restores_no_machine_whose_image_is_writable_or_another(
    change: dict[str, object],
) -> None:
    made = machine(DRIVERS[2])
    saved = saved_config(made)
    cloud_hypervisor_config.require_fits(saved, made, where="it")
    saved["disks"][1] |= change
    with pytest.raises(DamagedError, match="isn't that of its machine"):
        cloud_hypervisor_config.require_fits(saved, made, where="it")
    restored = cloud_hypervisor_config.restore_config(made)
    assert [disk.get("readonly", False) for disk in restored["disks"]] == [False, True, True]
