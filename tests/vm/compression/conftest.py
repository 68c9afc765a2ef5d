"""A snapshot of a guest that remembers something, of a size that takes a moment to compress."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ramet.model import protocols


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
