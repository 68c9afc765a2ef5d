"""Firecracker's devices beyond what every guest has: network, balloon, entropy; its metrics and log."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ramet.drivers.firecracker.vmm import FirecrackerVmm
from ramet.model.record import Machine, Nic
from ramet.paths import VMM_LOG
from ramet.testing.driver_contract.subject import Frozen, Subject, booted, restored
from ramet.units import MIB
from tests import machines

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

_MAC = "06:00:ac:10:00:02"


class Equipped(Subject):
    """A machine with everything in it."""

    taps = ("ramet-test-a", "ramet-test-b")

    def machine(self) -> Machine:
        """The usual one, with a network interface, a balloon, an entropy device, and changes tracked."""
        return msgspec.structs.replace(
            super().machine(),
            nics=(Nic(name="eth0", tap=self.taps[0], mac=_MAC),),
            balloon_bytes=8 * MIB,
            entropy_device=True,
            track_changes=True,
            metrics=True,
        )


@pytest.fixture
async def equipped() -> Equipped:
    """A probe guest under Firecracker, or a skip with the reason."""
    found = await machines.require("firecracker", "probe")
    return Equipped(found.driver, found.image, found.accelerator)


@pytest.fixture
def taps() -> Iterator[None]:
    """Two TAP devices of the host, removed in any case."""
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("only root can make a TAP device, where there is /dev/net/tun")
    made: list[str] = []
    try:
        for name in Equipped.taps:
            words = ["ip", "tuntap", "add", "dev", name, "mode", "tap"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"no TAP device can be made here: {done.stderr.strip()}")
            made.append(name)
        yield
    finally:
        for name in made:
            subprocess.run(["ip", "tuntap", "del", "dev", name, "mode", "tap"], check=True)


def taps_of(pid: int) -> set[str]:
    """The TAP devices that a process has open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines = entry.read_text().splitlines()
        except FileNotFoundError:
            continue  # closed meanwhile
        found |= {line.split()[1] for line in lines if line.startswith("iff:")}
    return found


async def test_a_fork_has_the_devices_and_a_tap_of_its_own(
    equipped: Equipped, taps: None, homes: Path
) -> None:
    place = Path(tempfile.mkdtemp(dir=homes, prefix="devices-"))
    mine, forks = equipped.taps
    async with booted(equipped, place / "source") as source:
        assert isinstance(source.vmm, FirecrackerVmm)
        found = await source.vmm.configuration()
        assert [interface["host_dev_name"] for interface in found["network-interfaces"]] == [mine]
        assert found["balloon"]["amount_mib"] == 8
        assert found["entropy"] is not None
        assert found["machine-config"]["track_dirty_pages"] is True
        assert [drive["path_on_host"] for drive in found["drives"]] == ["disk.raw"]
        assert found["vsock"]["uds_path"] == "vsock.sock"
        assert taps_of(source.vmm.process.pid) == {mine}
        # With changes tracked from the beginning a difference can be saved of a VM that has booted.
        await source.vmm.pause()
        await source.vmm.save_snapshot("diff-state", "diff-mem", diff=True)
        assert (source.directory / "diff-mem").stat().st_blocks * 512 < source.machine.memory_bytes // 4
        await source.vmm.resume()
        frozen = await equipped.freeze(source)
    moved = msgspec.structs.replace(frozen.machine, nics=(Nic(name="eth0", tap=forks, mac=_MAC),))
    frozen = Frozen(frozen.directory, moved)
    async with restored(equipped, frozen, place / "fork") as fork:
        assert taps_of(fork.vmm.process.pid) == {forks}, "not its source's, whatever the vmstate has"
        async with equipped.agent(fork) as agent:
            await agent.ping(timeout_s=30)


async def test_metrics_and_log(equipped: Equipped, taps: None, homes: Path) -> None:
    place = Path(tempfile.mkdtemp(dir=homes, prefix="metrics-"))
    async with booted(equipped, place / "vm") as vm:
        assert isinstance(vm.vmm, FirecrackerVmm)
        await vm.vmm.metrics()
        async with equipped.agent(vm) as agent:
            await equipped.write(agent, 4)
        assert (await vm.vmm.metrics())["block"]["write_count"] == 1
        assert "Successfully started microvm" in (vm.directory / VMM_LOG).read_text()
