"""A snapshot of a guest that remembers something, of a size that takes a moment to compress."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import anyio
import pytest

from ramet.model import protocols

LIMIT_S = 60


@pytest.fixture
async def snapshot(warm_host: protocols.Host, warm: protocols.VM) -> AsyncIterator[protocols.Snapshot]:
    """Of a fork of the template, which is gone: its mem-file has another link in the template's directory."""
    async with warm.fork(1, name="source") as (vm,):
        await vm.exec("sh", "-c", "echo remembered > /run/it", check=True)
        made = await vm.snapshot("s")
    yield made
    for snapshot in await warm_host.snapshots():
        await (await warm_host.snapshot(snapshot.id)).remove()


async def remembers(vm: protocols.VM) -> bool:
    """Whether a guest has what was in the snapshot's memory: of its own, and of the template."""
    said = await vm.exec("sh", "-c", "cat /run/it; wc -c < /tmp/data", timeout=60)
    return said.text == "remembered\n8388608\n"


class Halting:
    """A `progress` that halts the work at the end of a pass over the memory, or `at_once`, until it may go
    on.
    """

    def __init__(self, passes: int = 1, *, at_once: bool = False) -> None:
        self._at_once = at_once
        self._passes_left = passes
        self.halted = threading.Event()
        self._may_go_on = threading.Event()

    def __call__(self, done: int, total: int) -> None:
        if done < total and not self._at_once:
            return
        self._passes_left -= 1
        if self._passes_left == 0:
            self.halted.set()
            assert self._may_go_on.wait(LIMIT_S)

    async def reached(self) -> None:
        with anyio.fail_after(LIMIT_S):
            while not self.halted.is_set():
                await anyio.sleep(0.01)

    def go_on(self) -> None:
        self._may_go_on.set()


@contextmanager
def letting_go(*halting: Halting) -> Iterator[None]:
    """A thread that halts can't be cancelled: it goes on whatever happens here."""
    try:
        yield
    finally:
        for thread in halting:
            thread.go_on()


def slowly(_done: int, _total: int) -> None:
    """A `progress` that makes the work last: 6 s for the template's 256 MiB, of which it waits nearly all."""
    time.sleep(0.1)
