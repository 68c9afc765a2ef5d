"""Pause and resume, by a user."""

from __future__ import annotations

import pytest

import ramet
from ramet.model import protocols
from tests.vm.lifecycle.test_lifecycle import state_of

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def test_pause_stops_the_guest_and_resume_lets_it_go_on(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        await vm.pause()
        assert await state_of(vm) == "paused"
        assert (await vm.inspect()).vmm_status == "paused"
        with pytest.raises(ramet.WrongStateError, match="resume"):
            await vm.exec("true")
        with pytest.raises(ramet.WrongStateError):
            await vm.pause()
        await vm.resume()
        assert (await vm.exec("echo", "on")).text == "on\n"
        # A paused instance can be made a template, and stays out of the way of what follows.
        await vm.pause()
        base = await vm.template()
        async with base.fork(1) as (child,):
            assert (await child.exec("echo", "on")).text == "on\n"
