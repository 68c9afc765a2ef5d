"""What a worker that is writing, or was killed, has in a capture's directory (found by the hunt)."""

from __future__ import annotations

import pytest

import ramet
from ramet.engine.maintenance.compaction import compact_capture
from ramet.engine.maintenance.requests import request_if_left
from ramet.engine.maintenance.worker import work
from ramet.paths import Home
from ramet.system.locks import file_lock

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def test_a_fork_takes_nothing_that_the_manifest_does_not_name(warm: ramet.VM) -> None:
    being_written = warm.directory / "mem-0123abcd"
    being_written.write_bytes(bytes(range(256)) * 64)
    try:
        async with warm.fork(1) as (fork,):
            assert not (fork.directory / being_written.name).exists()
            assert (await fork.exec("true")).ok
        assert not await compact_capture(warm.directory, warm._context.driver("qemu"))
        assert not being_written.exists(), "no worker will ever name it"
        assert (warm.directory / "mem").exists()
    finally:
        being_written.unlink(missing_ok=True)


async def test_work_is_to_be_done_until_it_is_done(warm_host: ramet.Host) -> None:
    home = Home(warm_host.home)
    home.work_to_do.touch()
    async with file_lock(home.worker_lock, wait_s=1):
        await request_if_left(home)  # somebody is at it: no other is started
    assert home.work_to_do.exists()
    assert await work(home) == 0
    assert not home.work_to_do.exists()
