"""A Host on which the probe guest runs under Firecracker, or a skip with the reason."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import ramet
from ramet.errors import NotFoundError, UnavailableError
from ramet.model import protocols
from ramet.units import MIB

DATA_ADDRESS = 0x4000000
"""Guest RAM that the probe leaves alone: 64 MiB and up."""

MakeTemplate = Callable[..., Coroutine[Any, Any, ramet.VM]]


@pytest.fixture
async def probes(host: protocols.Host) -> protocols.Host:
    """An open Host that can run the probe guest."""
    try:
        vm = await host.run("probe", driver="firecracker", memory="64M")
    except (UnavailableError, NotFoundError) as error:
        pytest.skip(error.message)
    await vm.remove(force=True)
    return host


@pytest.fixture
def make_template(probes: ramet.Host) -> MakeTemplate:
    """Boot a probe, have it write `touched_mib` of RAM and a sector, and make a template of it."""

    async def make(memory: str = "256M", *, touched_mib: int = 4, name: str | None = None) -> ramet.VM:
        vm = await probes.run("probe", driver="firecracker", memory=memory, name=name)
        await vm.exec("fill", hex(DATA_ADDRESS), hex(touched_mib * MIB // 4096), "0x1111", check=True)
        await vm.exec("bpoke", "3", "0x1111", check=True)
        return await vm.template()

    return make


def mapped(pid: int, inode: int) -> list[str]:
    """The permissions of the mappings of that inode in a process."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[4] == str(inode)]
