"""A rewind that is cancelled leaves one VMM, the one that the record names."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

import ramet
from tests.conftest import living_in
from tests.endurance.concurrency.test_cancellation import each_iteration

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


@pytest.mark.deep
async def test_a_rewind_cancelled_at_every_await(host: ramet.Host) -> None:
    """By asyncio itself, whose cancellation passes anyio's shields: one VMM is left, and it is the one that
    the row names.
    """
    vm = await host.run(name="x", memory="128M")
    made = await vm.snapshot("s")
    count = 0

    def note(number: int) -> None:
        nonlocal count
        count = number

    with each_iteration(note):
        await vm.rewind("s")
    for at in range(1, count + 1):
        task = asyncio.ensure_future(vm.rewind("s"))

        def cancel(number: int, task: asyncio.Future[None] = task, at: int = at) -> None:
            if number == at:
                task.cancel()

        with each_iteration(cancel), suppress(asyncio.CancelledError):
            await task
        (listed,) = await host.list()
        assert living_in(host.home) == [listed.pid], f"cancelled at iteration {at} of {count}"
        assert list((host.home / "staging").iterdir()) == []
        assert (await vm.exec("true")).ok
    await made.remove()
