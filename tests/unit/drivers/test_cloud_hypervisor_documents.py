"""What is believed of Cloud Hypervisor's documents, and what isn't: it believes them all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.drivers.cloud_hypervisor import config, state, vmstate
from ramet.drivers.cloud_hypervisor.state import GuestRange
from ramet.errors import DamagedError, UnavailableError
from ramet.model.record import Machine, Nic
from ramet.units import GIB, MIB
from tests.unit.drivers.cloud_hypervisor_documents import (
    LARGEST,
    SIZE,
    VERSION,
    encoded,
    machine,
    memory_manager,
    parsed,
    saved_config,
    saved_state,
    vm_state,
)

HIGH = 3 * GIB + 64 * MIB


def inner(document: dict[str, Any], *path: str) -> Any:
    """A component's state."""
    for name in path:
        document = document["snapshots"][name]
    return json.loads(document["snapshot_data"]["state"])


@pytest.mark.parametrize("made", [machine(), machine(HIGH, cpus=3, disks=2), machine(disks=0)])
def test_a_whole_state_is_kept_but_for_ranges_and_clock_flags(made: Machine) -> None:
    document = saved_state(made)
    restored = json.loads(
        parsed(encoded(document), made).for_restore([GuestRange(4096, 8192), GuestRange(0, 4096)])
    )
    memory, vm = inner(restored, "memory-manager"), inner(restored)
    assert memory["memory_ranges"] == {"data": [{"gpa": 4096, "length": 8192}, {"gpa": 0, "length": 4096}]}
    assert vm["clock"]["Kvm"][8:12] == [0] * 4
    # Everything else, integers above 2**53 too, is as it was saved.
    memory["memory_ranges"] = memory_manager(made)["memory_ranges"]
    vm["clock"]["Kvm"][8] = 14
    assert (memory, vm) == (memory_manager(made), vm_state())
    assert memory["arch_mem_regions"][0]["size"] == LARGEST
    for tree in (restored, document):
        del tree["snapshot_data"], tree["snapshots"]["memory-manager"]["snapshot_data"]
    assert restored == document


def test_no_ranges_are_an_empty_list() -> None:
    made = machine()
    restored = json.loads(parsed(encoded(saved_state(made)), made).for_restore([]))
    assert inner(restored, "memory-manager")["memory_ranges"] == {"data": []}


def test_a_state_that_was_saved_from_a_restored_guest_is_whole_again() -> None:
    """Ranges that the VMM lists in several pieces make up the RAM all the same."""
    made = machine(HIGH)
    memory = memory_manager(made)
    memory["memory_ranges"]["data"] = [
        {"gpa": 4 * GIB, "length": 64 * MIB},
        {"gpa": 0, "length": MIB},
        {"gpa": MIB, "length": 3 * GIB - MIB},
    ]
    parsed(encoded(saved_state(made, memory=memory)), made)


def test_a_state_cut_anywhere_is_refused() -> None:
    made = machine()
    text = encoded(saved_state(made))
    for length in range(0, len(text) - 1, 37):
        with pytest.raises(DamagedError, match="it: its saved state can't be used"):
            parsed(text[:length], made)


@given(st.integers(0, 1 << 20), st.integers(1, 255))
def test_a_state_with_another_byte_is_refused_or_read(place: int, by: int) -> None:
    """Nothing but `DamagedError` comes out."""
    made = machine()
    text = bytearray(encoded(saved_state(made)))
    text[place % len(text)] ^= by
    try:
        parsed(bytes(text), made).for_restore([])
    except DamagedError:
        pass


def _range(memory: dict[str, Any], **fields: Any) -> None:
    memory["memory_ranges"]["data"][0] |= fields


def _mapping(memory: dict[str, Any], **fields: Any) -> None:
    memory["guest_ram_mappings"][0] |= fields


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda memory: _range(memory, length=SIZE // 2), f"make up {SIZE // 2} bytes"),
        (lambda memory: _range(memory, length=-SIZE), "make up"),
        (lambda memory: _range(memory, gpa=4096), "make up"),
        (lambda memory: _range(memory, gpa=1 << 63), "make up"),
        (lambda memory: _range(memory, gpa="0"), "isn't as Cloud Hypervisor writes it"),
        (lambda memory: _range(memory, length=1 << 70), "make up"),
        (lambda memory: memory.update(memory_ranges={"data": []}), "make up 0 bytes"),
        (lambda memory: memory["memory_ranges"]["data"].append({"gpa": 0, "length": SIZE}), "make up"),
        (lambda memory: memory.pop("memory_ranges"), "isn't as"),
        (lambda memory: _mapping(memory, size=SIZE * 2), "isn't mapped as a mem-file is"),
        (lambda memory: _mapping(memory, file_offset=4096), "isn't mapped"),
        (lambda memory: _mapping(memory, virtio_mem=True), "isn't mapped"),
        (lambda memory: _mapping(memory, zone_id="other"), "isn't mapped"),
        (lambda memory: memory.update(guest_ram_mappings=[]), "isn't mapped"),
    ],
)
def test_ram_that_is_not_the_machines_is_refused(
    change: Callable[[dict[str, Any]], object], why: str
) -> None:
    made = machine()
    memory = memory_manager(made)
    change(memory)
    with pytest.raises(DamagedError, match=why):
        parsed(encoded(saved_state(made, memory=memory)), made)


@pytest.mark.parametrize(
    "clock", [{}, {"Kvm": []}, {"Kvm": [0] * 47}, {"Kvm": [256] * 48}, {"Kvm": {"clock": 1}}, None]
)
def test_a_clock_of_another_form_is_refused(clock: object) -> None:
    made = machine()
    with pytest.raises(DamagedError, match="its clock"):
        parsed(encoded(saved_state(made, vm={**vm_state(), "clock": clock})), made)


def test_a_state_of_another_machine_is_refused() -> None:
    text = encoded(saved_state(machine()))
    for other, why in (
        (machine(2 * SIZE), "make up"),
        (machine(cpus=2), "its CPUs aren't those of a machine with 2"),
        (machine(disks=2), "no state of .*, disk1"),
    ):
        with pytest.raises(DamagedError, match=why):
            parsed(text, other)


@pytest.mark.parametrize("text", [b"[]", b"1", b"null", b"\xff", b"[" * 100_000, b'{"snapshots": 3}'])
def test_what_is_no_state_at_all_is_refused(text: bytes) -> None:
    with pytest.raises(DamagedError):
        parsed(text, machine())


def test_a_state_that_does_not_end_is_not_read() -> None:
    most_bytes = state.most_bytes(1)
    with pytest.raises(DamagedError, match=f"more than {most_bytes}"):
        parsed(encoded(saved_state(machine())) + b" " * most_bytes, machine())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tree: tree["cpu-manager"]["snapshots"].update({"7": 5}), "its CPUs"),
        (lambda tree: tree["cpu-manager"].update(snapshots={"1": {}}), "its CPUs"),
        (lambda tree: tree["cpu-manager"]["snapshots"].update({"0": None}), "`0` isn't as"),
        (lambda tree: tree["cpu-manager"]["snapshots"]["0"].update(snapshot_data=None), "`0` has no state"),
        (lambda tree: tree["device-manager"]["snapshots"].update(disk=None), "`disk` isn't as"),
        (lambda tree: tree["device-manager"]["snapshots"]["disk"].update(snapshot_data={}), "no state"),
        (lambda tree: tree["device-manager"]["snapshots"].pop("__serial"), "no state of __serial"),
        (lambda tree: tree["device-manager"]["snapshots"].pop("_virtio-pci-disk"), "of _virtio-pci-disk"),
    ],
)
def test_a_cpu_or_device_without_its_state_is_refused(
    change: Callable[[dict[str, Any]], object], why: str
) -> None:
    """Cloud Hypervisor would make it anew, in silence."""
    document = saved_state(machine())
    change(document["snapshots"])
    with pytest.raises(DamagedError, match=why):
        parsed(encoded(document), machine())


def test_a_restored_machine_is_made_of_the_machine_alone_and_can_be_saved_again() -> None:
    made = machine(disks=2)
    saved = saved_config(made)
    config.require_fits(saved, made, where="it")
    restored = config.restore_config(made)
    assert restored["payload"] == {"kernel": "gone"}
    config.require_fits({**saved, **restored}, made, where="the next capture")


def test_a_fork_has_its_own_tap_and_no_mac_of_another() -> None:
    made = machine()
    nic = Nic(name="net0", tap="tap-source", mac="52:54:00:00:00:01")
    source = _with_nic(made, nic)
    saved = saved_config(source)
    # As v53.0 fills it in, by its sources.
    offloads = dict.fromkeys(("offload_tso", "offload_ufo", "offload_csum"), True)
    numbers = {"num_queues": 2, "queue_size": 256, "pci_segment": 0, "mtu": None}
    saved["net"][0] |= {"host_mac": "52:54:00:00:00:99", "vhost_user": False, **numbers, **offloads}
    fork = _with_nic(made, Nic(name="net0", tap="tap-fork", mac=nic.mac))
    config.require_fits(saved, fork, where="it")
    assert config.restore_config(fork)["net"] == [{"id": "net0", "tap": "tap-fork", "mac": nic.mac}]


def _with_nic(made: Machine, nic: Nic) -> Machine:
    return msgspec.structs.replace(made, nics=(nic,))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda saved: saved["memory"]["zones"][0].update(shared=True), "zones.0.shared` is True"),
        (lambda saved: saved["memory"]["zones"][0].update(shared=0), "zones.0.shared` is 0"),
        (lambda saved: saved["memory"]["zones"][0].update(file="/home/me/mem"), "zones.0.file"),
        (lambda saved: saved["memory"]["zones"][0].update(size=SIZE // 2), "zones.0.size"),
        (lambda saved: saved["memory"]["zones"].append({"id": "more"}), "memory.zones"),
        (lambda saved: saved["memory"].update(thp=True), "memory.thp"),
        (lambda saved: saved["disks"][0].update(path="/etc/shadow"), "disks.0.path"),
        (lambda saved: saved["disks"][0].update(vhost_socket="/run/a"), "vhost_socket` names '/run/a'"),
        (lambda saved: saved["disks"].clear(), "disks"),
        (lambda saved: saved.pop("vsock"), "`vsock` is missing"),
        (lambda saved: saved.update(fs=[{"tag": "x", "socket": "x"}]), "`fs` has"),
        (lambda saved: saved.update(devices=[{"path": "x"}]), "`devices` has"),
        (lambda saved: saved["serial"].update(mode="File", file="console.log"), "serial.mode"),
        (lambda saved: saved["serial"].update(file="/root/.profile"), "serial.file"),
        (lambda saved: saved["cpus"].update(boot_vcpus=2), "cpus.boot_vcpus"),
        (lambda saved: saved.update(platform={"uuid": "/"}), "`platform` has"),
        (lambda saved: saved["cpus"]["features"].update(amx="/"), "cpus.features.amx` names"),
        (lambda saved: saved.update(watchdog=True), "`watchdog` is on"),
    ],
)
def test_a_configuration_of_another_machine_is_refused(
    change: Callable[[dict[str, Any]], object], why: str
) -> None:
    saved = saved_config(machine())
    change(saved)
    with pytest.raises(DamagedError, match=why):
        config.require_fits(saved, machine(), where="it")


def test_what_is_no_configuration_is_refused() -> None:
    for text in (b"", b"[1]", b"{", b"\xff", b" " * (config.MOST_BYTES + 1)):
        with pytest.raises(DamagedError, match="its configuration"):
            config.parse(text, where="it")


def test_a_vmstate_has_both_documents_as_they_were() -> None:
    made = machine()
    texts = encoded(saved_config(made)), encoded(saved_state(made))
    content = vmstate.encode(VERSION, *texts)
    read = vmstate.decode(content, version="53.1", where="it")
    assert (bytes(read.config), bytes(read.state), read.version) == (*texts, VERSION)


@pytest.mark.parametrize("version", ["52.0", "54.0.0", "54.0.0-12-gabcdef0"])
def test_another_major_version_is_refused(version: str) -> None:
    content = vmstate.encode(version, b"{}", b"{}")
    with pytest.raises(UnavailableError, match=f"by Cloud Hypervisor {version}, and this is 53") as caught:
        vmstate.decode(content, version=VERSION, where="it")
    assert caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 64,
        b"{}",
        vmstate.encode(VERSION, b"{}", b"{}")[:-1],
        vmstate.encode("none", b"{}", b"{}"),
        vmstate.encode(VERSION, b"{}", b"{}").replace(b"hypervisor-1", b"hypervisor-2"),
    ],
)
def test_what_is_no_vmstate_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedError, match=r"^it "):
        vmstate.decode(content, version=VERSION, where="it")
