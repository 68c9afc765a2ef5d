"""A balloon on Firecracker maps memory over the mem-file: what is captured is what the guest sees."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import ramet
from ramet.drivers.firecracker.driver import Firecracker
from ramet.model import protocols
from ramet.model.record import Machine
from ramet.units import MIB
from tests.support.guests import Guest
from tests.vm.conftest import host_and_snapshots

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

_PAGE = 4096
_DATA = 0x5000000
_PAGES = 0x40


@pytest.fixture
def with_balloon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that Firecracker makes have one, empty at first. The engine gives nobody one by itself."""
    make = Firecracker.machine

    def machine(self: Firecracker, **sizes: Any) -> Machine:
        return msgspec.structs.replace(make(self, **sizes), balloon_bytes=0)

    monkeypatch.setattr(Firecracker, "machine", machine)


async def total(vm: protocols.VM) -> int:
    said = await vm.exec("sum", hex(_DATA), hex(_PAGES), check=True)
    return int(said.text.split()[0], 16) // (_PAGE // 8)


async def test_captures_of_a_guest_that_gave_pages_back(
    with_balloon: None, probe: Guest, host: ramet.Host
) -> None:
    base = await probe.boot(host)
    await base.exec("fill", hex(_DATA), hex(_PAGES), "1", check=True)
    (source,) = await (await base.template()).fork(1)
    await source.exec("give", hex(_DATA + 8 * _PAGE), "30", check=True)
    await source.exec("fill", hex(_DATA + 10 * _PAGE), "4", "5", check=True)
    # Sixteen pages are as they were, four are in use again, the rest is zeros.
    expected = 16 * 1 + 4 * 5
    assert await total(source) == expected
    (branch,) = await source.fork(1)
    (of_snapshot,) = await (await source.snapshot()).fork(1)
    (grandchild,) = await branch.fork(1)
    await source.standby()
    await source.restore()
    for snapshot in (source, branch, of_snapshot, grandchild):
        assert await total(snapshot) == expected
    # Gave and was captured once more, behind a delta that has zeros in it.
    await grandchild.exec("give", hex(_DATA), "4", check=True)
    (last,) = await grandchild.fork(1)
    assert await total(last) == expected - 4
    (sibling,) = await base.fork(1)
    assert await total(sibling) == _PAGES, "nobody has made holes in what they share"
    assert last.receipt.memory.delta_bytes < 4 * MIB
