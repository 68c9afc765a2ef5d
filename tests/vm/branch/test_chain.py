"""Twenty generations: booted, frozen, forked, branched, captured, put to sleep and woken, over and over."""

from __future__ import annotations

import statistics

import pytest

import ramet
from ramet.api.handles import Snapshot
from tests.side_by_side import tell
from tests.support.guests import Guest
from tests.vm.conftest import host_and_snapshots

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)]

DEPTH = 20
ROUNDS = 5
FLAT_BYTES = 8 << 20
"""How much larger the deepest delta may be: a guest's daily life, and above 8 MiB it is compacted."""

Forkable = ramet.VM | Snapshot


async def step(vm: ramet.VM, depth: int) -> Forkable:
    """What the next generation is forked from: each way of keeping a state in turn."""
    match depth % 4:
        case 0:
            return await vm.template()
        case 1:
            return vm  # a branch
        case 2:
            made = await vm.snapshot(f"depth-{depth}")
            await vm.remove(force=True)
            return made
        case _:
            await vm.standby()
            await vm.restore()
            await vm.standby()
            return vm


async def remove(one: Forkable) -> None:
    await (one.remove() if isinstance(one, Snapshot) else one.remove(force=True))


async def ready_ms(source: Forkable) -> float:
    """The median of some forks, each from the call to its guest's proof."""
    took = []
    for _ in range(ROUNDS):
        async with source.fork(1) as (fork,):
            took.append(fork.receipt.timings_ms.total)
    return statistics.median(took)


@pytest.mark.deep
@pytest.mark.alone
async def test_every_value_of_every_depth_is_there(guest: Guest, host: ramet.Host) -> None:
    kept: dict[int, Forkable] = {}
    vm = await guest.boot(host)
    first_ms = 0.0
    files: list[int] = []
    deltas: list[int] = []
    for depth in range(DEPTH + 1):
        await guest.write(vm, depth, 1000 + depth)
        kept[depth] = await step(vm, depth)
        if depth == 2:
            first_ms = await ready_ms(kept[depth])
        # Every other ancestor leaves when its grandchild is there.
        if depth >= 3 and depth % 2:
            await remove(kept.pop(depth - 3 if depth % 4 == 3 else depth - 2))
        if depth < DEPTH:
            (vm,) = await kept[depth].fork(1, require_shared=guest.is_linux)
            files.append(len([path for path in vm.directory.iterdir() if not path.name.startswith("disk")]))
            deltas.append(vm.receipt.memory.delta_bytes)
    assert len(kept) <= DEPTH // 2 + 2
    last_ms = await ready_ms(kept[DEPTH])
    for depth, one in kept.items():
        (fork,) = await one.fork(1)
        written = [1000 + slot for slot in range(depth + 1)] + [0] * (DEPTH - depth)
        assert await guest.read(fork, DEPTH + 1) == (written, written), depth
        await fork.remove(force=True)
    tell(
        f"{guest.driver}: a fork {DEPTH} deep over one 2 deep: {last_ms:.0f} / {first_ms:.0f} ms"
        f" = {last_ms / first_ms:.2f}; deltas {deltas[1] >> 10} to {max(deltas) >> 10} KiB;"
        f" {files[1]} to {files[-1]} files"
    )
    assert last_ms <= 2 * first_ms
    assert max(deltas) <= deltas[1] + FLAT_BYTES
    assert max(files) <= max(files[:4])
