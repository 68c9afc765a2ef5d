"""What differs between QEMU's releases, and how its versions are told and compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.drivers.interface import Ability
from ramet.drivers.qemu.driver import Qemu
from ramet.drivers.qemu.releases import RUN, standing
from ramet.drivers.versions import is_pre_release, is_same_release
from ramet.units import MIB

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def qemu(version: str) -> Qemu:
    """The driver as it is with that version."""
    return Qemu().as_of(version)


@pytest.mark.parametrize(
    ("version", "is_run", "words"),
    [
        *((f"{major}.{minor}.1", True, "run") for major, minor in RUN),
        ("8.2.2", False, "untried, documented to do what ramet asks of it"),
        ("11.0.0", False, "untried, documented to do what ramet asks of it"),
        ("11.1.90", False, "untried: no release"),
        ("12.0.0", False, "untried: newer than any whose documents were read (11.1)"),
    ],
)
def test_what_was_run_and_what_was_not_is_told(version: str, is_run: bool, words: str) -> None:
    found = standing(version)
    assert (found.is_run, found.words.startswith(words)) == (is_run, True)
    assert is_run or "7.2, 10.0, 11.1 were run" in found.words


@pytest.mark.parametrize(
    ("said", "version", "machine_type"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", "7.2.22", "pc-i440fx-7.2"),
        ("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)", "11.1.3", "pc-i440fx-11.1"),
        ("QEMU emulator version 9.0.0 (qemu-kvm-9.0.0-10.el9_5.2)", "9.0.0", "pc-i440fx-9.0"),
        ("QEMU emulator version 10.0.93 (v10.1.0-rc3-dirty)", "10.0.93", "pc-i440fx-10.0"),
        ("QEMU emulator version 12.0", "12.0", "pc-i440fx-12.0"),
    ],
)
async def test_versions_of_all_kinds_are_read(
    said: str, version: str, machine_type: str, tmp_path: Path
) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\necho '{said}'\necho 'Copyright (c) 2003-2026 Fabrice Bellard 4.3'\n")
    program.chmod(0o755)
    driver = Qemu(str(program))
    assert await driver.version() == version
    assert driver.machine(accelerator="tcg", memory_bytes=MIB, cpus=1).machine_type == machine_type


async def test_a_program_that_was_upgraded_is_asked_again(tmp_path: Path) -> None:
    """In a process that lives on, as `ramet serve` does."""
    program = tmp_path / "qemu"
    driver = Qemu(str(program))
    for version in ("7.2.22", "11.1.3"):
        new = tmp_path / version
        new.write_text(f"#!/bin/sh\necho QEMU emulator version {version}\n")
        new.chmod(0o755)
        new.replace(program)
        assert await driver.version() == version
    assert Ability.OPENS_MEM_FILE_READ_ONLY in driver.abilities


@pytest.mark.parametrize(
    ("version", "other", "is_same"),
    [
        ("7.2.19", "7.2.22", True),
        ("7.2", "7.2.22", True),
        ("7.2.22", "10.0.13", False),
        ("10.0.13", "10.1.0", False),
        ("11.1.90", "11.1.90", True),
        ("11.1.90", "11.1.91", False),
        ("11.1.90", "11.1.3", False),
        ("11.1.49", "11.1.3", True),
        ("1.16.1-dev", "1.16.1", False),
        ("1.16.1+vendor.1", "1.16.0", True),
    ],
)
def test_what_takes_the_state_of_another_version(version: str, other: str, is_same: bool) -> None:
    assert is_same_release(version, other) is is_same
    assert is_same_release(other, version) is is_same


@pytest.mark.parametrize("version", ["7.2.22", "7.2", "1.12.1", "1.16.1+vendor.60"])
def test_a_release_leads_to_none(version: str) -> None:
    assert not is_pre_release(version)


def test_a_mem_file_is_read_only_from_8_2_on() -> None:
    for version, is_read_only in {"7.2.22": False, "8.1.5": False, "8.2.0": True, "11.1.3": True}.items():
        driver = qemu(version)
        words = driver.arguments(driver.machine(accelerator="tcg", memory_bytes=MIB, cpus=1))
        assert ("readonly=on,rom=off" in " ".join(words)) is is_read_only
        assert (Ability.OPENS_MEM_FILE_READ_ONLY in driver.abilities) is is_read_only


def test_a_monitor_is_an_object_from_11_1_on() -> None:
    for version, is_object in {"7.2.22": False, "11.0.2": False, "11.1.0": True, "12.0.0": True}.items():
        driver = qemu(version)
        words = driver.arguments(driver.machine(accelerator="tcg", memory_bytes=MIB, cpus=1))
        assert ("-mon" in words, "monitor-qmp,id=monitor,chardev=qmp" in words) == (not is_object, is_object)


def test_kernels_emulated_before_8_0_do_not_use_cmpxchg16b() -> None:
    for version, is_cleared in {"7.2.22": True, "8.0.0": False, "11.1.3": False}.items():
        for accelerator in ("tcg", "kvm"):
            driver = qemu(version)
            machine = driver.machine(accelerator=accelerator, memory_bytes=MIB, cpus=1)
            words = machine.kernel_arguments.split()
            assert ("clearcpuid=141" in words) is (is_cleared and accelerator == "tcg")
            assert driver.for_cold_start(machine) == machine


def test_a_cold_start_makes_the_machine_of_the_release_that_is_there() -> None:
    old = qemu("7.2.22").machine(accelerator="tcg", memory_bytes=MIB, cpus=1)
    assert qemu("11.1.3").for_cold_start(old).machine_type == "pc-i440fx-11.1"
    new = qemu("11.1.3").machine(accelerator="tcg", memory_bytes=MIB, cpus=1)
    assert qemu("7.2.22").for_cold_start(new) == old


def test_a_driver_as_of_a_version_changes_nothing_about_the_driver() -> None:
    driver = qemu("11.1.3")
    assert driver.as_of("7.2.22").abilities < driver.abilities
    assert driver.standing().words == "run"
    assert "monitor-qmp" in " ".join(
        driver.arguments(driver.machine(accelerator="tcg", memory_bytes=MIB, cpus=1))
    )
