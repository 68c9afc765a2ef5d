"""What the Cloud Hypervisor driver tells and refuses without a VMM."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import msgspec
import pytest

from ramet.drivers.cloud_hypervisor import ending, kvm_needs, releases
from ramet.drivers.cloud_hypervisor.api import words_of
from ramet.drivers.cloud_hypervisor.disks import foreign_format, magics_hidden
from ramet.drivers.cloud_hypervisor.driver import CloudHypervisor
from ramet.drivers.cloud_hypervisor.files import require_mem_file
from ramet.drivers.cloud_hypervisor.vmm import CloudHypervisorVmm
from ramet.drivers.interface import (
    Ability,
    Ending,
    LoadsDelta,
    ResumesOnLoad,
    SavesSnapshot,
    SavesState,
    StartsEmpty,
    TellsVersion,
)
from ramet.errors import UnavailableError, VmmError
from ramet.model.record import Disk, Machine, ProcessRef
from ramet.paths import CONSOLE_LOG, EVENTS_LOG, KERNEL_FILE, MEM_FILE, VMM_LOG
from ramet.programs import environment
from ramet.units import MIB
from tests.unit.drivers.cloud_hypervisor_documents import VERSION, machine

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def program(directory: Path, words: str) -> Path:
    """A program that says so when it is asked for its version."""
    path = directory / "cloud-hypervisor"
    path.write_text(f"#!/bin/sh\necho '{words}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("words", "version", "machine_type"),
    [
        ("cloud-hypervisor v53.0", "53.0", "cloud-hypervisor-53"),
        ("cloud-hypervisor v53.0.0", "53.0.0", "cloud-hypervisor-53"),
        ("cloud-hypervisor v54.1-246-gae44c29", "54.1-246-gae44c29", "cloud-hypervisor-54"),
    ],
)
async def test_versions_of_all_kinds_are_read(
    words: str, version: str, machine_type: str, tmp_path: Path
) -> None:
    driver = CloudHypervisor(str(program(tmp_path, words)))
    assert await driver.version() == version
    made = driver.machine(accelerator="kvm", memory_bytes=MIB, cpus=1)
    assert made.machine_type == machine_type
    assert driver.for_cold_start(machine()).machine_type == machine_type


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("cloud-hypervisor v52.0", "is 52.0: ramet needs 53.0 or newer"),
        ("cloud-hypervisor v9.0", "is 9.0: ramet needs 53.0 or newer"),
        ("Firecracker v1.16.1", "is of an unknown version"),
    ],
)
async def test_a_program_that_is_too_old_or_another_is_refused(words: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=why) as caught:
        await CloudHypervisor(str(program(tmp_path, words))).version()
    assert "RAMET_CLOUD_HYPERVISOR" in str(caught.value)


async def test_the_setting_names_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path, "cloud-hypervisor v53.0")
    monkeypatch.setenv("RAMET_CLOUD_HYPERVISOR", str(path))
    assert await CloudHypervisor().version() == "53.0"
    monkeypatch.setenv("RAMET_CLOUD_HYPERVISOR", "/nowhere/ch")
    with pytest.raises(UnavailableError, match="RAMET_CLOUD_HYPERVISOR says /nowhere/ch"):
        await CloudHypervisor().version()
    monkeypatch.setenv("RAMET_CLOUD_HYPERVISOR", "cloud-hypervisor")
    assert environment()["RAMET_CLOUD_HYPERVISOR"] == "cloud-hypervisor"


async def test_a_program_with_file_capabilities_is_refused_to_an_ordinary_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path, "cloud-hypervisor v53.0")
    driver = CloudHypervisor(str(path))
    # linux/capability.h: struct vfs_cap_data of revision 2, CAP_NET_ADMIN.
    capabilities = struct.pack("<IIIII", 0x02000001, 1 << 12, 0, 0, 0)
    monkeypatch.setattr(os, "getxattr", lambda *_: capabilities)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnavailableError, match="file capabilities") as caught:
        await driver.version()
    assert caught.value.hint
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert await driver.version() == "53.0"


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("53.0", "run"),
        ("53.0.0", "run"),
        ("53.1", "untried: newer than any"),
        ("54.0.0-12-gabc", "untried: no release"),
    ],
)
def test_what_was_run_and_what_was_not_is_told(version: str, words: str) -> None:
    assert releases.standing(version).words.startswith(words)


@pytest.mark.parametrize(
    ("refused_at", "lacking", "words"),
    [
        (None, kvm_needs.Lacks(), None),
        ("nested state", kvm_needs.Lacks(nested_state="Invalid argument"), "can't be captured"),
        ("vCPU", kvm_needs.Lacks(), None),
        ("VM", kvm_needs.Lacks(), None),
        ("121", kvm_needs.Lacks(capabilities=("KVM_CAP_SPLIT_IRQCHIP",)), "KVM lacks KVM_CAP_SPLIT_IRQCHIP"),
    ],
)
def test_what_kvm_lacks_is_found_by_asking(
    monkeypatch: pytest.MonkeyPatch, refused_at: str | None, lacking: kvm_needs.Lacks, words: str | None
) -> None:
    """KVM itself is used by the contract suite alone."""
    requests = {0xAE01: "VM", 0xAE41: "vCPU", 0xC080AEBE: "nested state"}
    opened: list[int] = []

    def ioctl(_descriptor: int, request: int, argument: object) -> int:
        if request == 0xAE03:
            return int(str(argument) != refused_at)
        if requests[request] == refused_at:
            raise OSError(22, "Invalid argument")
        if request == 0xC080AEBE:
            return 0
        opened.append(os.open("/dev/null", os.O_RDONLY))
        return opened[-1]

    monkeypatch.setattr(kvm_needs, "_KVM", "/dev/null")
    monkeypatch.setattr("fcntl.ioctl", ioctl)
    assert kvm_needs.lacks() == lacking
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    standing = CloudHypervisor().as_of(VERSION).standing()
    assert standing.advice is None if words is None else words in str(standing.advice)
    assert (standing.why_unusable is not None) == bool(lacking.capabilities)


def test_a_machine_without_kvm_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm_needs, "_KVM", "/nowhere/kvm")
    assert kvm_needs.lacks() == kvm_needs.Lacks()


def test_abilities_are_asked_for_by_protocols() -> None:
    driver = CloudHypervisor().as_of(VERSION)
    vmm = CloudHypervisorVmm(Path("/nowhere"), ProcessRef(1, 1, "x"), machine(), VERSION)
    for ability in (SavesState, ResumesOnLoad, LoadsDelta, TellsVersion):
        assert isinstance(vmm, ability)
    assert not isinstance(vmm, SavesSnapshot)  # it saves no differences
    assert isinstance(driver, StartsEmpty)
    assert Ability.LOADS_DELTA_BEFORE_VMSTATE not in driver.abilities


def test_a_machines_document_names_only_files_of_its_directory() -> None:
    driver = CloudHypervisor().as_of(VERSION)
    made = machine(disks=2)
    (document,) = driver.arguments(made)
    assert driver.arguments(made) == [document]
    parsed = json.loads(document)
    assert parsed["memory"]["zones"] == [
        {"id": "mem0", "size": made.memory_bytes, "file": "mem", "shared": False}
    ]
    assert [disk["path"] for disk in parsed["disks"]] == ["disk.raw", "disk1.raw"]
    assert document.count("/") == len(["", "dev", "urandom"]) - 1


def with_files(directory: Path, made: Machine) -> Path:
    """A directory with the files that the machine boots from."""
    (directory / KERNEL_FILE).write_bytes(b"kernel")
    (directory / MEM_FILE).touch()
    os.truncate(directory / MEM_FILE, made.memory_bytes)
    for disk in made.disks:
        (directory / disk.file).write_bytes(bytes(4096))
    return directory


@pytest.mark.parametrize("size_bytes", [0, 4096, 64 * MIB - 1, 64 * MIB + 1])
async def test_a_mem_file_of_another_size_is_refused_before_a_vmm_is_started(
    tmp_path: Path, size_bytes: int
) -> None:
    """Cloud Hypervisor would take it, and be ended by a signal in the middle of its guest's life."""
    made = machine()
    os.truncate(with_files(tmp_path, made) / MEM_FILE, size_bytes)
    with pytest.raises(VmmError, match=f"mem has {size_bytes} bytes, and the machine {64 * MIB}"):
        require_mem_file(tmp_path, made)


async def test_a_mem_file_that_is_none_is_refused(tmp_path: Path) -> None:
    made = machine()
    with pytest.raises(VmmError, match="mem can't be used"):
        require_mem_file(tmp_path, made)
    (tmp_path / "elsewhere").write_bytes(b"")
    os.truncate(tmp_path / "elsewhere", made.memory_bytes)
    (tmp_path / MEM_FILE).symlink_to("elsewhere")
    with pytest.raises(VmmError, match="mem can't be used"):
        require_mem_file(tmp_path, made)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"balloon_bytes": 0}, "a balloon"),
        ({"track_changes": True}, "a list of changed pages"),
        ({"metrics": True}, "metrics"),
        ({"accelerator": "tcg"}, "emulation"),
        ({"disks": (Disk(name="disk", file="d.qcow2", format="qcow2", size_bytes=MIB),)}, "isn't raw"),
    ],
)
async def test_what_it_does_not_make_is_refused_and_not_left_out(
    tmp_path: Path, fields: dict[str, object], what: str
) -> None:
    made = msgspec.structs.replace(machine(), **fields)
    driver = CloudHypervisor(str(program(tmp_path, "cloud-hypervisor v53.0")))
    with_files(tmp_path, made)
    with pytest.raises(UnavailableError, match=what) as caught:
        await driver.restore(tmp_path, made)
    assert caught.value.hint


async def test_a_boot_without_a_kernel_or_on_a_foreign_disk_is_refused(tmp_path: Path) -> None:
    made = machine()
    driver = CloudHypervisor(str(program(tmp_path, "cloud-hypervisor v53.0")))
    with_files(tmp_path, made)
    size_bytes = made.disks[0].size_bytes
    (tmp_path / "disk.raw").write_bytes(b"QFI\xfb" + bytes(4092))
    with pytest.raises(VmmError, match=rf"disk.raw has 4096 bytes, and the machine's disk {size_bytes}"):
        await driver.boot(tmp_path, made)
    os.truncate(tmp_path / "disk.raw", size_bytes)
    with pytest.raises(VmmError, match=r"disk.raw is a raw disk and looks like a qcow2 file"):
        await driver.boot(tmp_path, made)
    (tmp_path / KERNEL_FILE).unlink()
    with pytest.raises(VmmError, match="kernel is missing"):
        await driver.boot(tmp_path, made)


async def test_a_program_that_ends_at_once_is_an_error_and_leaves_no_process(tmp_path: Path) -> None:
    made = machine()
    driver = CloudHypervisor(str(program(tmp_path, "cloud-hypervisor v53.0")))
    with_files(tmp_path, made)
    with pytest.raises(VmmError, match="Cloud Hypervisor didn't start: ") as caught:
        await driver.restore(tmp_path, made)
    assert "doctor" in str(caught.value)


async def test_too_few_open_files_are_refused_before_a_vmm_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = machine()
    driver = CloudHypervisor(str(program(tmp_path, "cloud-hypervisor v53.0")))
    await driver.version()
    with_files(tmp_path, made)
    monkeypatch.setattr("resource.getrlimit", lambda _: (100, 100))
    with pytest.raises(UnavailableError, match=r"100 files at most \(RLIMIT_NOFILE\)") as caught:
        await driver.restore(tmp_path, made)
    assert caught.value.hint
    assert not (tmp_path / "api.sock").exists()


FOOTER = b"conectix" + bytes(4) + bytes.fromhex("00010000 ffffffffffffffff") + bytes(36) + b"\0\0\0\x02"
DISKS = (
    Disk(name="disk", file="disk.raw", format="raw", size_bytes=4096),
    Disk(name="disk1", file="disk1.raw", format="raw", size_bytes=4096),
)


@pytest.mark.parametrize(
    ("head", "footer", "claimed"),
    [
        (b"QFI\xfb\x00\x00\x00\x03", b"", "qcow2"),
        (b"vhdxfile", b"", "VHDX"),
        (b"", FOOTER, "VHD"),
        (b"vhdxfile", FOOTER, "VHDX"),
        (b"", FOOTER.replace(b"\x00\x00\x00\x02", b"\x00\x00\x00\x03"), None),  # it grows
        (b"", b"conectix", None),
        (b"conectix", b"", None),
        (b"", b"vhdxfile", None),
        (b"QFI", b"", None),
        (b"", b"", None),
        (b"\x00" * 512, b"", None),
    ],
)
def test_a_foreign_magic_is_hidden_and_put_back(
    tmp_path: Path, head: bytes, footer: bytes, claimed: str | None
) -> None:
    for disk in DISKS:
        (tmp_path / disk.file).write_bytes(bytes(4096))
    last = footer + b"the rest"
    content = head + bytes(4096 - 512 - len(head)) + last + bytes(512 - len(last))
    (tmp_path / "disk1.raw").write_bytes(content)
    assert foreign_format(tmp_path / "disk1.raw") == claimed
    with pytest.raises(ZeroDivisionError), magics_hidden(tmp_path, DISKS) as is_any:
        assert is_any == (claimed is not None)
        assert foreign_format(tmp_path / "disk1.raw") is None
        assert (tmp_path / "disk1.raw").read_bytes().rstrip(b"\0").endswith(b"the rest")
        raise ZeroDivisionError
    assert (tmp_path / "disk1.raw").read_bytes() == content
    assert (tmp_path / "disk.raw").read_bytes() == bytes(4096)


def test_an_ordinary_disk_is_not_opened_for_writing(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(4096))
    before = (tmp_path / "disk.raw").stat()
    with magics_hidden(tmp_path, DISKS[:1]) as is_any:
        assert not is_any
    assert (tmp_path / "disk.raw").stat() == before


def events(*names: str) -> bytes:
    """Events as they are written: indented objects, an empty line behind each."""
    texts = []
    for name in names:
        source, event = name.split("/")
        stamp = {"secs": 1, "nanos": 2}
        document = {"timestamp": stamp, "source": source, "event": event, "properties": None}
        texts.append(json.dumps(document, indent=2))
    return "".join(f"{text}\n\n" for text in texts).encode()


SHUTDOWN = events("vm/booted", "vm/shutdown", "vm/deleted", "vmm/shutdown")
RESET = events("vm/resumed", "virtio-device/reset", "vm/rebooting")


@pytest.mark.parametrize(
    ("seen", "log", "announced", "expected"),
    [
        (SHUTDOWN, b"INFO -- VM guest exit event\n", False, Ending.POWERED_OFF),
        (SHUTDOWN, b"INFO -- VM exit event\n", False, Ending.ASKED),
        (SHUTDOWN, b"VM exit event\n VM guest exit event\n", False, Ending.POWERED_OFF),
        # KVM's error has the events, the exit status and the last line of an ordered shutdown.
        (SHUTDOWN, b"ERROR VCPU generated error: VcpuRun(x)\nVM exit event\n", False, Ending.DIED),
        (SHUTDOWN, b"", False, Ending.DIED),
        (RESET, b"VM reset event\n", True, Ending.REBOOTED),
        (RESET, b"VM reset event\n", False, Ending.CRASHED),
        (RESET + events("vm/rebooted"), b"VM reset event\n", True, Ending.DIED),
        (events("vm/booted"), b"", True, Ending.DIED),
        (b"", b"", True, Ending.DIED),
        (RESET[150:], b"", True, Ending.REBOOTED),
        (b"\xff\n\n[1]\n\n" + RESET, b"", True, Ending.REBOOTED),
        (RESET + b'{"timestamp": ', b"", True, Ending.REBOOTED),
    ],
)
def test_how_a_vmm_ended(seen: bytes, log: bytes, announced: bool, expected: Ending) -> None:
    assert ending.ending_of(seen, log, reboot_announced=announced) is expected


def test_an_ending_is_read_from_the_directory(tmp_path: Path) -> None:
    driver = CloudHypervisor()
    assert driver.ending(tmp_path) is Ending.DIED
    (tmp_path / EVENTS_LOG).write_bytes(RESET)
    (tmp_path / VMM_LOG).write_bytes(b"VM reset event\n")
    (tmp_path / CONSOLE_LOG).write_bytes(b"reboot: Restarting system\n")
    assert driver.ending(tmp_path) is Ending.REBOOTED


def test_a_refusal_is_one_line_of_its_own_words() -> None:
    assert words_of(b'["Error from API","The VM could not be snapshotted"]') == (
        "Error from API: The VM could not be snapshotted"
    )
    assert words_of(b"plain\ntext \x1b[2J").startswith("plain text")
    assert "\x1b" not in words_of(b"plain\x1b[2J")
    assert words_of(b"") == "without a word"
    assert len(words_of(b"x" * 100_000)) <= 1000
