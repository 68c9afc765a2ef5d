"""Counts of forks and links, and the modes of what they lie in."""

from __future__ import annotations

import stat

import pytest

import ramet
from ramet.paths import MEM_FILE

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


@pytest.mark.proves("I6")
async def test_forks_and_links_are_counted_when_asked(warm: ramet.VM) -> None:
    mem = warm.directory / MEM_FILE
    assert (await warm.info()).forks == 0
    before = mem.stat().st_nlink
    forks = list(await warm.fork(2))
    while forks:
        assert (await warm.info()).forks == len(forks)
        assert mem.stat().st_nlink == before + len(forks)
        await forks.pop().remove(force=True)
    assert (await warm.info()).forks == 0
    assert mem.stat().st_nlink == before


@pytest.mark.proves("I9")
async def test_what_a_guest_has_is_closed_to_others(warm: ramet.VM) -> None:
    """Its sockets and logs may have any mode: nobody else gets into the directory that they lie in."""
    async with warm.fork(1) as (vm,):
        for path in (vm.directory, *(path for path in vm.directory.rglob("*") if path.is_dir())):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
