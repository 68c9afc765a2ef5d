"""A fork cancelled at any of its awaits leaves nothing: no VMM, directory, record, descriptor or task."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from ramet.model import protocols
from tests.conftest import living_in
from tests.side_by_side import tell

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

FORKS = 2
BUDGET_S = 25


@contextmanager
def each_iteration(call: Callable[[int], None]) -> Iterator[None]:
    """`call` is told the number of each iteration of the event loop, before it.

    Between two iterations every task stands at an await.
    """
    loop: Any = asyncio.get_running_loop()
    run_once, number = loop._run_once, 0

    def counted() -> None:
        nonlocal number
        number += 1
        call(number)
        run_once()

    outer = loop.get_exception_handler()

    def handled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # anyio tells a read that is cancelled in the turn in which its socket becomes readable of both.
        if not isinstance(context.get("exception"), asyncio.InvalidStateError):
            outer(loop, context)

    loop._run_once = counted
    loop.set_exception_handler(handled)
    try:
        yield
    finally:
        del loop._run_once
        loop.set_exception_handler(outer)


Held = dict[str, set[str]]


def held(home: Path) -> Held:
    """What could leak."""
    return {
        "processes": {str(pid) for pid in living_in(home)},
        "directories": {path.name for path in (home / "instances").iterdir()},
        "descriptors": set(_descriptors()),
        "tasks": {task.get_name() for task in asyncio.all_tasks()},
    }


def _descriptors() -> Iterator[str]:
    """What they are of; a number behind it, because many are of the same kind."""
    of: dict[str, int] = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that this looks through
            what = str(entry.readlink()).partition(":[")[0]
            of[what] = of.get(what, 0) + 1
            yield f"{what} {of[what]}"


@pytest.mark.proves("I7")
@pytest.mark.deep
async def test_a_fork_cancelled_at_every_await(
    warm: protocols.VM, warm_host: protocols.Host, warm_home: Path
) -> None:
    for _ in range(2):  # the first makes threads and caches that stay
        count = 0

        def note(number: int) -> None:
            nonlocal count
            count = number

        with each_iteration(note):
            forks = await warm.fork(FORKS)
        async with forks:
            pass
    gc.collect()  # what other tests left to it would be fewer later
    before = held(warm_home)
    # Coarsely over the whole course first, then between: however soon the time is over, it was all of it.
    order = sorted(range(1, count + 1), key=lambda point: (int(f"{point:012b}"[::-1], 2), point))
    began, tried, cut = time.monotonic(), 0, 0
    for at in order:
        if time.monotonic() - began > BUDGET_S:
            break
        with anyio.CancelScope() as scope:

            def cancel(number: int, scope: anyio.CancelScope = scope, at: int = at) -> None:
                if number == at:
                    scope.cancel()

            with each_iteration(cancel):
                made = await warm.fork(FORKS)
        tried += 1
        if scope.cancelled_caught:
            cut += 1
        else:
            async with made:  # it was quicker this time, or cancelled with nothing left to cancel
                pass
        assert await leaked(warm_home, before) == [], f"cancelled at iteration {at} of {count}"
        assert [instance.name for instance in await warm_host.list(everything=True)] == ["warm"]
    tell(f"{tried} of {count} awaits of fork({FORKS}) tried, {cut} cancelled, 0 leaks")
    assert cut >= 20


async def leaked(home: Path, before: Held) -> list[str]:
    """What is held that wasn't before, once tasks that are ending have ended."""
    for _ in range(100):
        now = held(home)
        more = [f"{what}: {now[what] - before[what]}" for what in now if now[what] - before[what]]
        if not more:
            break
        await anyio.sleep(0.01)
    return more


@pytest.mark.timing
async def test_a_timeout_of_asyncio_itself(warm: protocols.VM, warm_home: Path) -> None:
    """`asyncio.wait_for` cancels the task, not a scope of anyio's: early, in the middle, and late."""
    whole_s = []
    for _ in range(2):
        began = time.monotonic()
        async with warm.fork(8):
            whole_s.append(time.monotonic() - began)
    for share in 0.03, 0.3, 0.6:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_awaited(warm), share * min(whole_s))
        assert living_in(warm_home) == []
        assert len(list((warm_home / "instances").iterdir())) == 1


async def _awaited(warm: protocols.VM) -> None:
    await warm.fork(8)
