"""Warm VMMs with Linux in them: what has stood paused for a while goes on as if nothing had been."""

from __future__ import annotations

import time

import anyio
import pytest

import ramet
from ramet.engine.pool import directory as pool_directory
from tests.endurance.linux_on_kvm.test_seed_case import (
    said,
    source,  # noqa: F401 - the fixture
)
from tests.vm.pool.conftest import filled

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(900)]

WAITED_S = 5


async def an_empty_vmm_of(host: ramet.Host, driver: str) -> None:
    """Wait until the pool has one."""
    home, version = host._opened.home, await host._opened.driver(driver).version()
    key = pool_directory.key_of_empty(driver, version)
    with anyio.fail_after(120):
        while key not in {entry.key for entry in pool_directory.entries(pool_directory.names(home))}:
            await anyio.sleep(0.1)


async def test_a_warm_guest_goes_on_after_a_while(source: ramet.VM, host: ramet.Host) -> None:  # noqa: F811
    data = await said(source, "md5sum < /tmp/data")
    driver = (await source.info()).driver
    template = await source.template()
    async with ramet.Host(host.home, warm=2) as warm_host:
        base = await warm_host.get(template.id)
        if driver != "qemu":  # a VMM that starts without knowing its guest
            # Where there are two such drivers, the empty VMMs are those of the one that is in demand.
            (asked,) = await base.fork(1)
            await an_empty_vmm_of(warm_host, driver)
            (first,) = await asked.fork(1)
            assert first.receipt.warm == "empty"
            assert await said(first, "md5sum < /tmp/data") == data
            assert await said(first, "head -n 1 /dev/vda") == "source"
        (one, other) = await base.fork(2)
        await filled(warm_host, 2, source=template.name)
        await anyio.sleep(WAITED_S)
        warm = await base.fork(2)
        for fork in warm:
            assert fork.receipt.warm == "loaded"
            assert await said(fork, "hostname; cat /run/ramet/generation") == f"{fork.name}\n2"
            assert await said(fork, "md5sum < /tmp/data") == data
            assert await said(fork, "head -n 1 /dev/vda") == "source"
            assert abs(float(await said(fork, "date +%s")) - time.time()) < 5
            script = "was=$(cat /run/count); while [ $(cat /run/count) -le $((was + 1)) ]; do sleep 0.2; done"
            result = await fork.exec("timeout", "60", "sh", "-c", script)
            assert result.ok, f"{fork.name}: the counter of the source has stopped"
        drawn = {fork.receipt.identity.boot_random for fork in (one, other, *warm)}
        assert len(drawn) == 4
        await said(
            warm[0], "echo mine > /tmp/data; echo mine | dd of=/dev/vda bs=512 conv=notrunc,fsync 2>&1"
        )
        assert await said(warm[1], "md5sum < /tmp/data") == data
        assert await said(warm[1], "head -n 1 /dev/vda") == "source"
        await warm[1].standby()
        await warm[1].restore()
        assert await said(warm[1], "md5sum < /tmp/data") == data
