"""Time, several CPUs and requests in flight, across every way in which a guest is paused and resumed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import anyio
import pytest

import ramet
from ramet.engine.exec.commands import agent
from ramet.guest.messages import Pong
from ramet.model import protocols
from ramet.model.lifecycle import State
from tests.side_by_side import tell
from tests.support.guests import Guest
from tests.vm.conftest import host_and_snapshots

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)]

_WALL_LIMIT_S = 1.0
_PAUSE_S = 1.5
"""A clock that stopped meanwhile is further off than the limit."""


class Clocks:
    """A guest's clocks as its agent tells them: the monotonic one may only go forwards."""

    def __init__(self, vm: ramet.VM, *, since_ns: int = 0) -> None:
        self.vm = vm
        self.last_ns = since_ns
        self.worst_s = 0.0

    async def look(self) -> Pong:
        """Fails the test when monotonic time went backwards, or wall time isn't the host's."""
        async with agent(self.vm._context, self.vm._record) as asked:
            before = time.time()
            pong = await asked.ping(timeout_s=30)
            after = time.time()
        assert pong.monotonic_ns >= self.last_ns, f"{self.vm.name}: {self.last_ns} then {pong.monotonic_ns}"
        self.last_ns = pong.monotonic_ns
        # Between the question and its answer: how far outside of that it lies.
        guest_s = pong.realtime_ns / 1e9
        off_s = max(before - guest_s, guest_s - after, 0.0)
        self.worst_s = max(self.worst_s, off_s)
        assert off_s < _WALL_LIMIT_S, f"{self.vm.name} is {off_s:.3f} s off"
        return pong


@pytest.mark.proves("I5")
@pytest.mark.core
async def test_clocks_go_on(guest: Guest, source: ramet.VM) -> None:
    """In a source and its forks: monotonic never backwards, wall time right at once."""
    clocks = Clocks(source)
    await clocks.look()
    await source.pause()
    await anyio.sleep(_PAUSE_S)
    await source.resume()
    await clocks.look()
    forks: list[Clocks] = []
    for _ in range(3):
        before = clocks.last_ns
        (branch,) = await source.fork(1)
        await clocks.look()
        forks.append(Clocks(branch, since_ns=before))
        await forks[-1].look()
    captured_ns = clocks.last_ns
    snapshot = await source.snapshot("then")
    await clocks.look()
    await anyio.sleep(_PAUSE_S)
    (late,) = await snapshot.fork(1)
    of_late = Clocks(late, since_ns=captured_ns)
    await of_late.look()
    await source.standby()
    await anyio.sleep(_PAUSE_S)
    await source.restore()
    await clocks.look()
    await source.rewind("then")
    rewound = Clocks(source, since_ns=captured_ns)  # its time is the snapshot's again
    for vm in (rewound, of_late, *forks):
        for _ in range(3):
            await vm.look()
    worst = max(vm.worst_s for vm in (clocks, rewound, of_late, *forks))
    tell(f"{guest.driver}: after a pause, branches, a restore and a rewind {worst:.3f} s off at most")


async def counted(vms: Sequence[protocols.VM], files: Sequence[str]) -> list[list[int]]:
    """What counters in some guests have come to."""
    said = [(await vm.exec("cat", *files, check=True, timeout=60)).text.split() for vm in vms]
    return [[int(word) for word in words] for words in said]


@pytest.mark.deep
async def test_two_cpus_under_load_with_requests_in_flight(linux: Guest, host: protocols.Host) -> None:
    """A program on each CPU and one that writes and checks the disk: all go on, in the source and in every
    fork.
    """
    vm = await host.run(linux.image, driver=linux.driver, memory="192M", cpus=2, disks=["32M"])
    assert (await vm.exec("nproc", check=True)).text == "2\n"
    count = "i=0; while :; do i=$((i + 1)); echo $i > /run/{0}.new; mv /run/{0}.new /run/{0}; done"
    # Each round is written past the page cache, read back, and has to be the same: else the counter ends.
    check = (
        "i=0; while :; do i=$((i + 1)); yes $i | head -c 65536 > /tmp/out;"
        " dd if=/tmp/out of=/dev/vda bs=64k count=1 oflag=direct conv=notrunc 2> /dev/null;"
        " dd if=/dev/vda of=/tmp/in bs=64k count=1 iflag=direct 2> /dev/null;"
        " cmp -s /tmp/out /tmp/in || exit 1; echo $i > /run/d.new; mv /run/d.new /run/disk; done"
    )
    for number, script in enumerate((count.format("one"), count.format("two"), check)):
        await vm.spawn(*("taskset", str(1 + number % 2), "sh", "-c", script), console=False)
    files = ["/run/one", "/run/two", "/run/disk"]
    await vm.exec("sh", "-c", f"while ! cat {' '.join(files)}; do sleep 0.1; done", timeout=60, check=True)
    branches = []
    for _ in range(3):
        before = await counted([vm], files)
        (branch,) = await vm.fork(1)
        branches.append(branch)
        began = await counted([branch], files)
        assert all(now >= then for now, then in zip(began[0], before[0], strict=True))
    await vm.standby()
    await vm.restore()
    family = [vm, *branches]
    then = await counted(family, files)
    for attempt in range(100):
        now = await counted(family, files)
        grew = [all(n > t for n, t in zip(*pair, strict=True)) for pair in zip(now, then, strict=True)]
        if all(grew):
            break
        await anyio.sleep(0.2)
        assert attempt < 99, f"a clock doesn't advance: {then} then {now}"
    for vm in family:
        assert (await vm.info()).state is State.RUNNING


async def test_two_cpus_on_firecracker(probe: Guest, host: protocols.Host) -> None:
    """The probe uses one of them; the other's state is saved and restored all the same."""
    vm = await host.run(probe.image, driver=probe.driver, memory="96M", cpus=2, disks=["1M"])
    await probe.write(vm, 1, 7)
    (branch,) = await vm.fork(1)
    (grandchild,) = await branch.fork(1)
    await branch.standby()
    await branch.restore()
    for guest in (vm, branch, grandchild):
        assert (await guest.info()).cpus == 2
        assert await probe.read(guest, 2) == ([0, 7], [0, 7])
