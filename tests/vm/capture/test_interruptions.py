"""What else can happen while a guest is captured: one clear error, or none; nothing half published."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import ramet
from ramet.engine.capture import capture
from ramet.engine.capture.overlays import freeze_disks
from ramet.errors import VmmError
from ramet.model import protocols
from ramet.model.lifecycle import State
from ramet.paths import Home
from ramet.system import liveness
from tests.conftest import living_in
from tests.support.guests import Guest, pid_of
from tests.vm.conftest import host_and_snapshots

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


def left_of_captures(host: ramet.Host) -> list[str]:
    """Directories of snapshots, whosever."""
    home = Home(host.home)
    return [path.name for place in (home.snapshots, home.staging) for path in place.iterdir()]


@pytest.mark.core
async def test_branches_of_one_source_at_once(guest: Guest, source: ramet.VM, host: ramet.Host) -> None:
    """They wait for each other, and each has what was there when its turn came."""
    await guest.write(source, 0, 5)
    made: list[ramet.VM] = []

    async def branch() -> None:
        made.extend(await source.fork(2))

    async def snapshot() -> None:
        made.extend(await (await source.snapshot()).fork(1))

    async with anyio.create_task_group() as tasks:
        for work in (branch, snapshot, branch):
            tasks.start_soon(work)
    assert len({vm.name for vm in made}) == 5
    await guest.write(source, 0, 6)
    for number, one in enumerate(made):
        assert await guest.read(one, 1) == ([5], [5])
        await guest.write(one, 0, 10 + number)
    for number, one in enumerate(made):
        assert await guest.read(one, 1) == ([10 + number], [10 + number])
    assert await guest.read(source, 1) == ([6], [6])
    assert len(left_of_captures(host)) == 1


async def test_its_parent_is_removed_in_mid_capture(
    guest: Guest, source: protocols.VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = source
    await guest.write(base, 0, 5)
    (parent,) = await (await base.template()).fork(1)
    (child,) = await parent.fork(1)

    async def removed_meanwhile(*arguments: Any) -> Any:
        await base.remove()
        await parent.remove(force=True)
        return await freeze_disks(*arguments)

    monkeypatch.setattr(capture, "freeze_disks", removed_meanwhile)
    (branch,) = await child.fork(1)
    monkeypatch.undo()
    for vm in (child, branch, (await branch.fork(1))[0]):
        assert await guest.read(vm, 1) == ([5], [5])


@pytest.mark.parametrize("what", ["fork", pytest.param("standby", marks=pytest.mark.deep)])
async def test_its_vmm_dies_while_it_is_paused(
    guest: Guest, source: ramet.VM, host: ramet.Host, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    pid = await pid_of(source)
    list_changed: Callable[..., Any] = capture._list_changed

    def died(plan: Any) -> Any:
        os.kill(pid, signal.SIGKILL)
        while liveness.is_alive(plan.running.process):
            os.sched_yield()
        return list_changed(plan)

    monkeypatch.setattr(capture, "_list_changed", died)
    with anyio.fail_after(60), pytest.raises(VmmError) as caught:
        await getattr(source, what)()
    monkeypatch.undo()
    assert caught.value.message
    assert left_of_captures(host) == []
    assert (await source.info()).state is State.FAILED
    assert [instance.id for instance in await host.list(everything=True)] == [source.id]
    assert living_in(host.home) == []
    # Its disk is there, and can be started with.
    await source.stop()
    await source.start()
    await guest.write(source, 0, 7)
    (branch,) = await source.fork(1)
    assert await guest.read(branch, 1) == ([7], [7])


@pytest.mark.timing
async def test_a_capture_that_is_cancelled(guest: Guest, source: ramet.VM, host: ramet.Host) -> None:
    """Whenever that is: the source runs, nothing is left, and the next one succeeds."""
    await guest.change(source, 2)
    expected = await guest.sum(source, 2)
    for wait_s in (0.0, 0.005, 0.02, 0.03, 0.05, 0.08):
        with anyio.move_on_after(wait_s):
            await source.snapshot("given-up")
        for snapshot in await host.snapshots():
            await (await host.snapshot(snapshot.id)).remove()
        assert left_of_captures(host) == []
        assert await guest.sum(source, 2) == expected
    (branch,) = await source.fork(1)
    assert await guest.sum(branch, 2) == expected
