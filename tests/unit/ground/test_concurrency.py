"""Work that outlives a cancellation, runs next to a block, may fail, or is tried again."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest

from ramet.concurrency import alongside, best_effort, pauses_s, to_completion
from ramet.errors import StoreError

pytestmark = pytest.mark.anyio


@pytest.mark.timing
async def test_work_is_completed_although_asyncio_cancels_its_caller() -> None:
    begun, go, ended = asyncio.Event(), asyncio.Event(), False

    async def work() -> None:
        nonlocal ended
        begun.set()
        await go.wait()
        ended = True

    caller = asyncio.ensure_future(to_completion(work()))
    await begun.wait()
    caller.cancel()
    await asyncio.sleep(0)
    caller.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended


async def test_the_result_and_the_error_of_completed_work_are_its_own() -> None:
    async def work(fails: bool) -> int:
        if fails:
            raise StoreError("full")
        return 7

    assert await to_completion(work(False)) == 7
    with pytest.raises(StoreError, match="full"):
        await to_completion(work(True))


@pytest.mark.parametrize("error", [StoreError("full"), OSError(28, "No space left")])
async def test_best_effort_ignores_ramets_and_the_systems_errors(error: Exception) -> None:
    async def fail() -> None:
        raise error

    await best_effort(fail())


async def test_best_effort_hides_no_bug() -> None:
    async def fail() -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        await best_effort(fail())


@pytest.mark.timing
async def test_work_alongside_a_block_is_cancelled_with_it() -> None:
    state = "not begun"

    async def work() -> None:
        nonlocal state
        state = "begun"
        try:
            await anyio.sleep_forever()
        finally:
            state = "cancelled"

    async with alongside(work):
        await anyio.wait_all_tasks_blocked()
        assert state == "begun"
    assert state == "cancelled"


@pytest.mark.timing
async def test_work_that_is_to_be_finished_is_awaited() -> None:
    go, ended = anyio.Event(), False

    async def work() -> None:
        nonlocal ended
        await go.wait()
        await anyio.lowlevel.checkpoint()
        ended = True

    async with alongside(work, finish=True):
        go.set()
    assert ended


@pytest.mark.parametrize("finish", [False, True])
@pytest.mark.timing
async def test_the_blocks_error_is_raised_as_it_is_and_ends_the_work(finish: bool) -> None:
    with anyio.fail_after(5), pytest.raises(StoreError, match="full"):
        async with alongside(anyio.sleep_forever, finish=finish):
            raise StoreError("full")


@pytest.mark.timing
async def test_work_may_end_the_block() -> None:
    reached = False
    with anyio.fail_after(5):

        async def work() -> None:
            scope.cancel()

        async with alongside(work) as scope:
            await anyio.sleep_forever()
            reached = True
    assert not reached


@pytest.mark.timing
def test_pauses_grow_and_end_with_the_time() -> None:
    began = time.monotonic()
    pauses = pauses_s(0.002, 0.01, within_s=0.1, late=lambda: StoreError("late"))
    assert [next(pauses) for _ in range(4)] == [0.002, 0.004, 0.008, 0.01]
    with pytest.raises(StoreError, match="late"):
        for pause_s in pauses:
            time.sleep(pause_s)
    assert 0.1 <= time.monotonic() - began < 5


def test_without_time_there_is_one_try() -> None:
    with pytest.raises(StoreError, match="late"):
        next(pauses_s(0.002, 0.01, within_s=0, late=lambda: StoreError("late")))
