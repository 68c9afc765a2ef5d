"""VMGenID: the kernel of a fork hears of it from its VMM, and reseeds its random numbers by itself."""

from __future__ import annotations

import anyio
import pytest

import ramet
from ramet.images.kernel import list_kernels
from ramet.images.kernel_gaps import has_generation_id

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

_RESEEDED = "crng reseeded due to virtual machine fork"


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """New guests boot the newest kernel with the driver."""
    for found in list_kernels():
        if has_generation_id(found):
            monkeypatch.setenv("RAMET_KERNEL", str(found.vmlinuz))
            return
    pytest.skip("no kernel here has a driver for VMGenID (`ramet kernel ls`); `make newer-kernel` adds one")


async def times(vm: ramet.VM) -> int:
    """How often the kernel has said that it was forked."""
    return (await vm.exec("dmesg", check=True)).text.count(_RESEEDED)


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("kernel")
async def test_each_fork_and_restore_is_a_new_generation(host: ramet.Host) -> None:
    vm = await host.run("builtin", driver="qemu", memory="192M")
    assert vm._record.machine.vmgenid
    assert await times(vm) == 0
    one, two = await vm.fork(2)
    assert one.receipt.identity.vmgenid
    for fork in (one, two):
        await until(fork, 1)
    [deeper] = await one.fork(1)
    await until(deeper, 2)
    await one.standby()
    await one.restore()
    await until(one, 2)
    assert await times(vm) == 0


async def until(vm: ramet.VM, count: int) -> None:
    """The kernel hears of it a moment after the guest runs."""
    with anyio.fail_after(20):
        while await times(vm) < count:
            await anyio.sleep(0.05)
    assert await times(vm) == count


async def test_a_kernel_without_the_driver_gets_no_device(host: ramet.Host, warm: ramet.VM) -> None:
    found = list_kernels()[0]
    if has_generation_id(found):
        pytest.skip(f"the kernel {found.version} has the driver")
    [fork] = await warm.fork(1)
    assert not fork.receipt.identity.vmgenid
    assert "vmgenid" not in " ".join(fork._context.driver("qemu").arguments(fork._record.machine))
