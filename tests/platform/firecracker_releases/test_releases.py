"""What differs between Firecracker's releases, and what an unknown one can't do any harm with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

import ramet
from ramet.drivers.firecracker import config, releases
from ramet.drivers.firecracker.api import Api
from ramet.drivers.firecracker.driver import Firecracker
from ramet.drivers.firecracker.releases import ram_regions, release_of, standing
from ramet.drivers.vmstate_files import has_checksum
from ramet.model.record import RamRegion
from ramet.paths import MANIFEST_FILE, MEM_FILE, VMSTATE_FILE
from ramet.units import GIB, MIB
from tests.support.probes import DATA_ADDRESS

pytestmark = pytest.mark.anyio

LAYOUTS = {
    ((1, 12), 3328): [(0, 3328)],
    ((1, 12), 3329): [(0, 3328), (4096, 1)],
    ((1, 8), 5120): [(0, 3328), (4096, 1792)],
    ((1, 13), 3072): [(0, 3072)],
    ((1, 13), 3100): [(0, 3072), (4096, 28)],
    ((1, 16), 3328): [(0, 3072), (4096, 256)],
    ((2, 0), 5120): [(0, 3072), (4096, 2048)],
    ((1, 12), 300 * 1024): [(0, 3328), (4096, 300 * 1024 - 3328)],
    ((1, 13), 300 * 1024): [(0, 3072), (4096, 252 * 1024), (512 * 1024, 45 * 1024)],
}


@pytest.mark.parametrize(("numbers", "memory_mib"), LAYOUTS, ids=str)
def test_ram_lies_where_the_release_has_it(numbers: tuple[int, int], memory_mib: int) -> None:
    regions = ram_regions(memory_mib * MIB, numbers)
    assert [(region.guest_start // MIB, region.length_bytes // MIB) for region in regions] == LAYOUTS[
        numbers, memory_mib
    ]
    ends = [0, *(region.file_offset + region.length_bytes for region in regions)]
    assert [region.file_offset for region in regions] == ends[:-1]
    assert ends[-1] == memory_mib * MIB


@pytest.mark.parametrize(
    ("version", "is_run", "words"),
    [
        *((version, True, "run") for version in releases.RUN),
        ("1.12.0", False, "untried, layout as in its sources"),
        ("1.14.4", False, "untried, layout as in its sources"),
        ("1.16.0", False, "untried, layout as in its sources"),
        ("1.16.1-dev", False, "untried: no release"),
        ("1.17.0", False, "untried: newer than any whose sources were read (1.16)"),
        ("2.0.0", False, "untried: newer than any whose sources were read (1.16)"),
    ],
)
def test_what_was_run_and_what_was_not_is_told(version: str, is_run: bool, words: str) -> None:
    found = standing(version)
    assert (found.is_run, found.words.startswith(words)) == (is_run, True)
    assert is_run or all(name in found.words for name in releases.RUN)
    assert ("deafens" in (found.advice or "")) is version.startswith("1.16")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("firecracker-1.12", (1, 12)),
        ("firecracker-2.0", (2, 0)),
        ("pc-i440fx-7.2", None),
        ("firecracker-x", None),
    ],
)
def test_a_machine_says_which_release_makes_it(name: str, found: tuple[int, int] | None) -> None:
    assert release_of(name) == found


@pytest.mark.parametrize(
    "said",
    ["Firecracker v9.8.7-dev", "Firecracker v9.8.7+vendor.1\n\nSupported snapshot versions: 8, 9", "v9.8.7"],
)
async def test_versions_of_all_kinds_are_read(said: str, tmp_path: Path) -> None:
    program = tmp_path / "firecracker"
    program.write_text(
        f"#!/bin/sh\ncat <<'END'\n{said}\n\n2026 [main] exiting successfully. exit_code=0\nEND\n"
    )
    program.chmod(0o755)
    driver = Firecracker(str(program))
    if not said.startswith("Firecracker"):
        with pytest.raises(ramet.UnavailableError, match="unknown version"):
            await driver.version()
        return
    assert await driver.version() == said.split()[1].removeprefix("v")
    assert driver.machine(accelerator="kvm", memory_bytes=MIB, cpus=1).machine_type == "firecracker-9.8"
    assert "untried" in driver.standing().words


def test_changed_pages_are_tracked_by_the_name_that_the_release_has() -> None:
    machine = Firecracker.machine  # a machine needs a version
    driver = Firecracker().as_of("1.13.0")
    made = machine(driver, accelerator="kvm", memory_bytes=MIB, cpus=1)
    for named, other in ((True, False), (False, True)):
        request = config.load_request(
            made, VMSTATE_FILE, resume=True, network=False, vsock=False, track_dirty_pages=named
        )
        assert request.get("track_dirty_pages", False) is named
        assert request.get("enable_diff_snapshots", False) is other


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Firecracker is asked to change, in order: `Paused`, `Resumed`, and the files of saves."""
    calls: list[str] = []
    call = Api.call

    async def noted(self: Api, method: str, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
        if body is not None:
            calls.append(str(body.get("state") or body.get("mem_file_path") or path))
        return await call(self, method, path, body, **more)

    monkeypatch.setattr(Api, "call", noted)
    return calls


@pytest.mark.vm
async def test_where_a_bare_resume_deafens_the_state_is_saved_before(
    probes: ramet.Host, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "deafens", lambda numbers: True)
    vm = await probes.run("probe", driver="firecracker", memory="64M")
    await vm.exec("fill", hex(0x1000000), "1", "0x7", check=True)
    asked.clear()
    for _ in range(3):
        await vm.pause()
        await vm.resume()
        assert (await vm.exec("peek", hex(0x1000000), check=True)).text.split() == [f"{7:016x}"]
    assert asked == 3 * ["Paused", "/dev/null/none", "Resumed"]
    asked.clear()
    # A capture saves it anyway, and what it is loaded into was saved.
    (fork,) = await vm.fork(1)
    assert asked.count("/dev/null/none") == 1
    assert asked.index("/dev/null/none") < asked.index("Resumed")
    await fork.pause()
    await fork.resume()
    assert (await fork.exec("peek", hex(0x1000000), check=True)).text.split() == [f"{7:016x}"]
    assert asked.count("/dev/null/none") == 2
    steps = probes._context.vmm(probes._context.store.get(vm.id)).resume_steps().steps  # type: ignore[union-attr]
    assert [send.split()[1] for send, _ in steps] == ["/", "/snapshot/create", "/vm"]


@pytest.mark.vm
async def test_a_guest_whose_ram_is_not_proved_runs_and_is_not_captured(
    probes: ramet.Host, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a release that lays RAM out as none before it did."""
    wrong = 2 * GIB + 512 * MIB
    monkeypatch.setattr(
        releases,
        "ram_regions",
        lambda memory_bytes, numbers: (
            RamRegion(0, wrong, 0),
            RamRegion(4 * GIB, memory_bytes - wrong, wrong),
        ),
    )
    vm = await probes.run("probe", driver="firecracker", memory="3400M")
    await vm.exec("fill", hex(DATA_ADDRESS), "1", "0x7", check=True)
    for capture in (vm.template, vm.standby, vm.snapshot, lambda: vm.fork(1)):
        with pytest.raises(ramet.WrongStateError, match="is proved to be RAM") as caught:
            await capture()
        assert "doctor" in (caught.value.hint or "")
        assert (await vm.inspect()).state == "running"
        assert not any((vm.directory / name).exists() for name in (MEM_FILE, MANIFEST_FILE, VMSTATE_FILE))
        assert list((home / "snapshots").iterdir()) == []
    assert (await vm.exec("peek", hex(DATA_ADDRESS), check=True)).text.split() == [f"{7:016x}"]


@pytest.mark.vm
async def test_a_state_is_whole_by_its_checksum_whatever_the_refusal_says(
    probes: ramet.Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ramet.drivers.firecracker.vmm._RAM_REFUSED", "words of another release")
    vm = await probes.run("probe", driver="firecracker", memory="64M")
    template = await vm.template()
    await template.fork(1)
    with (template.directory / VMSTATE_FILE).open("rb") as file:
        assert has_checksum(file.fileno())
    whole = (template.directory / VMSTATE_FILE).read_bytes()
    for damaged in (
        whole[:-1],
        whole[:-8],
        whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        b"",
        b"12345678",
    ):
        (tmp_path / "state").write_bytes(damaged)
        with (tmp_path / "state").open("rb") as file:
            assert not has_checksum(file.fileno())


@pytest.mark.vm
async def test_a_cold_start_makes_the_machine_of_the_release_that_is_there(probes: ramet.Host) -> None:
    """Firecracker may have been upgraded since it last ran."""
    import msgspec

    vm = await probes.run("probe", driver="firecracker", memory="64M")
    context = probes._context
    assert context is not None
    now = context.store.get(vm.id).machine.machine_type
    await vm.stop()
    context.store.change(
        vm.id,
        lambda row: msgspec.structs.replace(
            row, machine=msgspec.structs.replace(row.machine, machine_type="firecracker-1.1")
        ),
    )
    await vm.start()
    assert context.store.get(vm.id).machine.machine_type == now
    with anyio.fail_after(60):
        await (await vm.template()).fork(1)


@pytest.mark.vm
async def test_a_capture_is_of_the_release_that_runs(
    probes: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program was upgraded meanwhile. What it can't load isn't said to be of it, and no guest is ended
    for it.
    """
    vm = await probes.run("probe", driver="firecracker", memory="64M")
    context = probes._context
    assert context is not None
    driver = context.drivers["firecracker"]
    running = await driver.version()
    monkeypatch.setattr(driver, "_version", vars(driver)["_version"].taken_for("9.8.7"))
    for capture in (vm.template, vm.standby, lambda: vm.fork(1)):
        with pytest.raises(ramet.UnavailableError, match=r"runs in firecracker .*; this machine has 9\.8\.7"):
            await capture()
        assert (await vm.inspect()).state == "running"
    snapshot = await vm.snapshot("kept")
    try:
        assert (await snapshot.inspect()).driver_version == running
        with pytest.raises(ramet.UnavailableError, match=r"saved by firecracker .* has 9\.8\.7"):
            await snapshot.fork(1)
        monkeypatch.setattr(driver, "_version", vars(driver)["_version"].taken_for(running))
        await snapshot.fork(1)
        await vm.template()
    finally:
        await snapshot.remove()
