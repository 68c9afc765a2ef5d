"""What a capture that failed leaves: a guest that runs, or is said not to, and no file more than before."""

from __future__ import annotations

import pytest

import ramet
from ramet.drivers.qemu_vmm import QemuVmm
from ramet.errors import VmmError, VmmTimeoutError
from ramet.model.lifecycle import State

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def hangs(*_: object) -> None:
    raise VmmTimeoutError("it doesn't answer")


async def refuses(*_: object) -> None:
    raise VmmError("no vmstate")


async def paused_and_can_be_resumed(vm: ramet.VM) -> None:
    """In its record and in fact."""
    assert (await vm.info()).state is State.PAUSED
    assert (await vm.inspect()).vmm_status == "paused"
    await vm.resume()
    assert (await vm.exec("true")).ok


async def test_a_guest_that_cannot_be_told_to_go_on_is_paused(
    host: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await host.run("builtin", memory="128M", name="still")
    with monkeypatch.context() as patched:
        patched.setattr(QemuVmm, "resume", hangs)
        with pytest.raises(VmmTimeoutError, match="still stands still") as caught:
            await vm.snapshot("now")
    assert caught.value.hint == "`ramet resume still` tries again"
    await paused_and_can_be_resumed(vm)
    # The error inside is the one that is raised.
    with monkeypatch.context() as patched:
        patched.setattr(QemuVmm, "resume", hangs)
        patched.setattr(QemuVmm, "save_vmstate", refuses)
        with pytest.raises(VmmError, match="no vmstate"):
            await vm.fork(1)
    await paused_and_can_be_resumed(vm)
    assert await host.snapshots() == []
    with monkeypatch.context() as patched:
        patched.setattr(QemuVmm, "resume", hangs)
        patched.setattr(QemuVmm, "save_vmstate", refuses)
        with pytest.raises(VmmError):
            await vm.standby()
    await paused_and_can_be_resumed(vm)
    await vm.standby()
