"""`state.json`, Cloud Hypervisor's devices and CPUs: bounded parsing, and the edits for a restore. Pure.

The document is a tree of snapshots, and the state of each component is JSON again, in a string. Two of them
matter here: the memory manager's, with the ranges of RAM that `memory-ranges` has (page data back to back, in
the list's order), and the VM's own, with the clock.

A file that was cut short comes with the very refusal that means success (seen with 53.0 on a full disk). Only
parsing it whole tells.

Sources: Cloud Hypervisor's `vm-migration/src/lib.rs` (`Snapshot`), `vmm/src/memory_manager.rs`
(`MemoryManagerSnapshotData`), `vmm/src/vm.rs` (`VmSnapshot`), at v53.0; `struct kvm_clock_data`, linux/kvm.h.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import msgspec

from ramet.drivers.cloud_hypervisor.config import ZONE
from ramet.errors import DamagedError
from ramet.model.record import RamRegion
from ramet.units import KIB, MIB

_OWN_DEVICES: Final = ("__ioapic", "__rng", "__serial")
"""Devices that Cloud Hypervisor makes by itself; the second is on the PCI bus, as are ramet's."""
_CPUS, _MEMORY, _DEVICES = "cpu-manager", "memory-manager", "device-manager"
_CLOCK_BYTES: Final = 48
_CLOCK_FLAGS: Final = slice(8, 12)
_NO_FLAGS: Final = [0, 0, 0, 0]
_HIGHEST_ADDRESS: Final = (1 << 52) - 1

T = TypeVar("T")


class GuestRange(NamedTuple):
    """A range of guest-physical addresses."""

    start: int
    length_bytes: int


class _Range(msgspec.Struct, frozen=True):
    gpa: int
    length: int


class _Ranges(msgspec.Struct, frozen=True):
    data: tuple[_Range, ...]


class _Mapping(msgspec.Struct, frozen=True):
    gpa: int
    size: int
    zone_id: str
    file_offset: int
    virtio_mem: bool = False


class _Memory(msgspec.Struct, frozen=True):
    memory_ranges: _Ranges
    guest_ram_mappings: tuple[_Mapping, ...]


class _Clock(msgspec.Struct, frozen=True):
    Kvm: tuple[int, ...]


class _Vm(msgspec.Struct, frozen=True):
    clock: _Clock


class _Component(msgspec.Struct, frozen=True):
    """A node of the tree. Fields that aren't named here are ignored, and stay in the document."""

    snapshots: dict[str, Any] = {}
    snapshot_data: dict[str, Any] | None = None


class State:
    """A `state.json` that was parsed whole. Made by `parse`."""

    def __init__(self, document: dict[str, Any], memory: dict[str, Any], vm: dict[str, Any]) -> None:
        self._document = document
        self._memory = memory
        self._vm = vm

    def for_restore(self, ranges: Iterable[GuestRange]) -> bytes:
        """Return the document to restore from, with those ranges to be read from `memory-ranges`.

        The guest's monotonic clock continues where it was: without its flags, KVM doesn't add the time since
        the capture (KVM_SET_CLOCK, Documentation/virt/kvm/api.rst). The agent sets the wall clock.
        """
        memory = {
            **self._memory,
            "memory_ranges": {
                **self._memory["memory_ranges"],
                "data": [{"gpa": start, "length": length} for start, length in ranges],
            },
        }
        clock = list(self._vm["clock"]["Kvm"])
        clock[_CLOCK_FLAGS] = _NO_FLAGS
        vm = {**self._vm, "clock": {**self._vm["clock"], "Kvm": clock}}
        snapshots = self._document["snapshots"]
        manager = snapshots[_MEMORY]
        return msgspec.json.encode(
            {
                **self._document,
                "snapshots": {**snapshots, _MEMORY: _with_state(manager, memory)},
                "snapshot_data": _with_state(self._document, vm)["snapshot_data"],
            }
        )


def most_bytes(cpus: int) -> int:
    """Return the largest `state.json` that is read, of a machine with that number of CPUs.

    With one CPU it has 57 KB, with two 91 KB. What is read is as it was saved, without a delta's ranges.
    """
    return MIB + cpus * 256 * KIB


def parse(
    text: bytes, *, regions: Sequence[RamRegion], cpus: int, devices: Collection[str], where: str
) -> State:
    """Parse a saved `state.json` of a machine with that RAM and those CPUs and devices.

    Raises `DamagedError` unless the document is whole: ranges and mappings make up the RAM exactly, and each
    CPU and device has its state. Cloud Hypervisor makes one without a state anew, in silence.
    """
    if len(text) > most_bytes(cpus):
        _damaged(where, f"it has {len(text)} bytes, more than {most_bytes(cpus)}")
    document = _decoded(text, dict[str, Any], where, "it")
    tree = _converted(document, _Component, where, "its tree")
    components = {
        name: _converted(tree.snapshots.get(name), _Component, where, f"`{name}`")
        for name in (_CPUS, _MEMORY, _DEVICES)
    }
    memory_state = _state_of(components[_MEMORY], where, f"`{_MEMORY}`")
    vm_state = _state_of(tree, where, "its clock")
    memory = _converted(memory_state, _Memory, where, f"`{_MEMORY}`")
    vm = _converted(vm_state, _Vm, where, "its clock")
    _require_ram(memory, regions, where)
    clock = vm.clock.Kvm
    if len(clock) != _CLOCK_BYTES or not all(0 <= byte <= 255 for byte in clock):
        _damaged(where, f"its clock isn't {_CLOCK_BYTES} bytes")
    if components[_CPUS].snapshots.keys() != {str(number) for number in range(cpus)}:
        _damaged(where, f"its CPUs aren't those of a machine with {cpus}")
    on_the_bus = [*devices, "__rng"]
    wanted = [*devices, *_OWN_DEVICES, *(f"_virtio-pci-{name}" for name in on_the_bus)]
    known = components[_DEVICES].snapshots.keys() & _tree_of_devices(components[_DEVICES], where)
    if missing := sorted(set(wanted) - known):
        _damaged(where, f"it has no state of {', '.join(missing)}")
    parts = [(_CPUS, name) for name in components[_CPUS].snapshots] + [(_DEVICES, name) for name in wanted]
    for component, name in parts:
        part = _converted(components[component].snapshots[name], _Component, where, f"`{name}`")
        _state_of(part, where, f"`{name}`")
    return State(document, memory_state, vm_state)


def _require_ram(memory: _Memory, regions: Sequence[RamRegion], where: str) -> None:
    ranges = memory.memory_ranges.data
    if not _covers(((part.gpa, part.length) for part in ranges), regions):
        saved_bytes = sum(part.length for part in ranges)
        whole_bytes = sum(region.length_bytes for region in regions)
        _damaged(where, f"its ranges make up {saved_bytes} bytes and not the RAM's {whole_bytes}")
    mappings = memory.guest_ram_mappings
    is_ours = _covers(((part.gpa, part.size) for part in mappings), regions) and not any(
        part.virtio_mem
        or part.zone_id != ZONE
        or not any(
            part.gpa - region.guest_start == part.file_offset - region.file_offset
            for region in regions
            if region.guest_start <= part.gpa < region.guest_start + region.length_bytes
        )
        for part in mappings
    )
    if not is_ours:
        _damaged(where, "its RAM isn't mapped as a mem-file is")


def _covers(parts: Iterable[tuple[int, int]], regions: Sequence[RamRegion]) -> bool:
    """Tell whether the parts make up the regions, each byte once."""
    joined: list[list[int]] = []
    for start, length in sorted(parts):
        if length <= 0 or not 0 <= start <= _HIGHEST_ADDRESS:
            return False
        if joined and joined[-1][1] == start:
            joined[-1][1] += length
        else:
            joined.append([start, start + length])
    return joined == [[region.guest_start, region.guest_start + region.length_bytes] for region in regions]


def _tree_of_devices(manager: _Component, where: str) -> frozenset[str]:
    tree = _state_of(manager, where, f"`{_DEVICES}`").get("device_tree")
    return frozenset(tree) if isinstance(tree, dict) else frozenset()


def _state_of(component: _Component, where: str, what: str) -> dict[str, Any]:
    """Return the state of a component, which is JSON in a string."""
    inner = (component.snapshot_data or {}).get("state")
    if not isinstance(inner, str):
        _damaged(where, f"{what} has no state")
    return _decoded(inner.encode(), dict[str, Any], where, what)


def _with_state(component: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    data = {**component["snapshot_data"], "state": msgspec.json.encode(state).decode()}
    return {**component, "snapshot_data": data}


def _decoded(text: bytes, kind: type[T], where: str, what: str) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        _damaged(where, f"{what} can't be read: {error}"[: 4 * KIB], error)


def _converted(value: Any, kind: type[T], where: str, what: str) -> T:
    try:
        return msgspec.convert(value, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        _damaged(where, f"{what} isn't as Cloud Hypervisor writes it: {error}", error)


def _damaged(where: str, why: str, cause: BaseException | None = None) -> NoReturn:
    raise DamagedError(
        f"{where}: its saved state can't be used: {why}", hint="make the capture again"
    ) from cause
