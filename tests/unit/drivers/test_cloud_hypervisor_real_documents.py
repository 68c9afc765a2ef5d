"""The documents that a Cloud Hypervisor 53.0 saved, of a Linux guest with two CPUs, 96 MiB and a disk.

They are as the VMM wrote them, but for the white space between them. So what is made by hand in
`cloud_hypervisor_documents.py` can't drift from what a VMM writes.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.drivers.cloud_hypervisor import config, vmstate
from ramet.drivers.cloud_hypervisor.driver import CloudHypervisor
from ramet.drivers.cloud_hypervisor.state import GuestRange
from ramet.errors import DamagedError
from ramet.units import MIB
from tests.unit.drivers.cloud_hypervisor_documents import memory_manager, parsed, saved_config, saved_state

SAVED: Final = Path(__file__).parent / "cloud_hypervisor_53.0"
VERSION: Final = "53.0"
CONFIG: Final = (SAVED / "config.json").read_bytes().strip()
STATE: Final = (SAVED / "state.json").read_bytes().strip()
MACHINE: Final = (
    CloudHypervisor()
    .as_of(VERSION)
    .machine(accelerator="kvm", memory_bytes=96 * MIB, cpus=2, disk_bytes=(16 * MIB,))
)


def taken_apart(text: bytes | str) -> dict[str, Any]:
    """The document with each component's state parsed, as deep as it goes."""

    def walk(node: dict[str, Any]) -> dict[str, Any]:
        made = dict(node)
        if isinstance(inner := (made.get("snapshot_data") or {}).get("state"), str):
            made["snapshot_data"] = {"state": json.loads(inner)}
        made["snapshots"] = {name: walk(part) for name, part in made.get("snapshots", {}).items()}
        return made

    return walk(json.loads(text))


def keys(value: Any) -> Any:
    """The names in a document, without its values."""
    return {name: keys(part) for name, part in value.items()} if isinstance(value, dict) else None


def test_the_documents_fit_their_machine() -> None:
    config.require_fits(config.parse(CONFIG, where="it"), MACHINE, where="it")
    parsed(STATE, MACHINE)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 100)), max_size=20))
def test_a_restore_changes_ranges_and_clock_flags_and_nothing_else(pages: list[tuple[int, int]]) -> None:
    ranges = [GuestRange(start * 4096, count * 4096) for start, count in pages]
    restored, saved = taken_apart(parsed(STATE, MACHINE).for_restore(ranges)), taken_apart(STATE)
    memory = restored["snapshots"]["memory-manager"]["snapshot_data"]["state"]
    clock = restored["snapshot_data"]["state"]["clock"]["Kvm"]
    assert memory["memory_ranges"]["data"] == [{"gpa": start, "length": length} for start, length in ranges]
    assert clock[8:12] == [0, 0, 0, 0]
    was = saved["snapshots"]["memory-manager"]["snapshot_data"]["state"]
    memory["memory_ranges"] = was["memory_ranges"]
    clock[8:12] = saved["snapshot_data"]["state"]["clock"]["Kvm"][8:12]
    assert restored == saved


def test_both_come_back_from_a_vmstate_as_they_were() -> None:
    content = vmstate.encode(VERSION, CONFIG, STATE)
    read = vmstate.decode(content, version="53.7", where="it")
    assert json.loads(bytes(read.config)) == json.loads(CONFIG)
    assert taken_apart(bytes(read.state)) == taken_apart(STATE)


@given(st.integers(0, len(STATE) - 1))
def test_a_state_that_was_cut_anywhere_is_damaged(length: int) -> None:
    with pytest.raises(DamagedError):
        parsed(STATE[:length], MACHINE)


@given(st.integers(0, len(CONFIG) - 1))
def test_a_configuration_that_was_cut_anywhere_is_damaged(length: int) -> None:
    with pytest.raises(DamagedError):
        config.parse(CONFIG[:length], where="it")


def test_a_restore_takes_nothing_from_a_saved_configuration() -> None:
    """A boot's configuration and a restore's differ by the kernel alone, which is in neither afterwards."""
    boot = config.vm_config(MACHINE, initramfs=True)
    assert {**boot, "payload": {"kernel": "gone"}} == config.restore_config(MACHINE)
    saved = json.loads(CONFIG)
    for part, value in config.restore_config(MACHINE).items():
        if part == "payload":
            continue
        kept = saved[part] if isinstance(value, list) else [saved[part]]
        for ours, theirs in zip(value if isinstance(value, list) else [value], kept, strict=True):
            assert {name: theirs[name] for name in ours if name != "zones"} == {
                name: there for name, there in ours.items() if name != "zones"
            }


def test_what_is_made_by_hand_has_the_parts_that_are_looked_at() -> None:
    real, made = json.loads(STATE), saved_state(MACHINE)
    assert set(real["snapshots"]) == set(made["snapshots"])
    real_memory = taken_apart(STATE)["snapshots"]["memory-manager"]["snapshot_data"]["state"]
    assert keys(memory_manager(MACHINE)).keys() <= real_memory.keys()
    assert {**real_memory["guest_ram_mappings"][0]}.keys() == memory_manager(MACHINE)["guest_ram_mappings"][
        0
    ].keys()
    assert set(saved_config(MACHINE)) >= {"cpus", "memory", "payload", "vsock", "serial", "disks"}


@pytest.mark.parametrize(
    ("where", "addition"),
    [
        ((), {"balloon": {"size": 0, "free_page_reporting": False}}),
        ((), {"fs": [{"tag": "x"}]}),
        ((), {"watchdog": True}),
        (("memory", "zones", 0), {"prefault": True}),
        (("memory",), {"hugepages": True}),
        (("disks", 0), {"backing_files": True}),
        (("disks", 0), {"vhost_socket": "/run/x"}),
    ],
)
def test_devices_switches_and_paths_that_were_added_are_refused(
    where: tuple[str | int, ...], addition: dict[str, Any]
) -> None:
    document = json.loads(CONFIG)
    part = document
    for name in where:
        part = part[name]
    part |= addition
    with pytest.raises(DamagedError, match="isn't that of its machine"):
        config.require_fits(document, MACHINE, where="it")


@pytest.mark.parametrize("change", ["cpus", "memory", "disks"])
def test_the_documents_fit_no_other_machine(change: str) -> None:
    other = msgspec.structs.replace(
        MACHINE,
        cpus=1 if change == "cpus" else MACHINE.cpus,
        memory_bytes=128 * MIB if change == "memory" else MACHINE.memory_bytes,
        disks=() if change == "disks" else MACHINE.disks,
    )
    with pytest.raises(DamagedError):
        config.require_fits(copy.deepcopy(config.parse(CONFIG, where="it")), other, where="it")
    if change != "disks":
        with pytest.raises(DamagedError):
            parsed(STATE, other)
