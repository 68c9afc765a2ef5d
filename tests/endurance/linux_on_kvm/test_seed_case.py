"""The case that ramet began with: a warm Linux guest on KVM, its memory shared by forks that outlive it.

The same tests on a machine whose own KVM runs Linux and in the emulated host.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import ramet
from ramet.errors import UnavailableError, UsageError
from ramet.memory.integrity import digest
from tests.conftest import living_in

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(900)]

FORKS = 4


@pytest.fixture(params=["qemu", "firecracker", "cloud-hypervisor"])
async def source(host: ramet.Host, request: pytest.FixtureRequest) -> ramet.VM:
    """A running guest, warmed up: data in its memory, and a program that counts on."""
    driver: str = request.param
    try:
        vm = await host.run("builtin", name="source", memory="128M", driver=driver, disks=["16M"])
    except (UsageError, UnavailableError) as error:
        if isinstance(error, UsageError) and "no driver" not in error.message:
            raise
        pytest.skip(str(error))
    info = await vm.info()
    assert (info.driver, info.accelerator) == (driver, "kvm")
    await vm.exec("sh", "-c", "head -c 4194304 /dev/urandom > /tmp/data", check=True)
    fill = "test -b /dev/vda && yes source | head -c 1048576 > /dev/vda && sync"
    await vm.exec("sh", "-c", fill, check=True)
    count = 'i=0; while :; do i=$((i + 1)); echo "$i" > /run/next; mv /run/next /run/count; sleep 1; done'
    await vm.exec("sh", "-c", f"({count}) </dev/null >/dev/null 2>&1 &", check=True)
    return vm


async def said(vm: ramet.VM, script: str) -> str:
    return (await vm.exec("sh", "-c", script, check=True)).text.strip()


async def test_forks_share_are_themselves_and_outlive_their_source(source: ramet.VM) -> None:
    data = await said(source, "md5sum < /tmp/data")
    template = await source.template()
    mem = template.directory / "mem"
    inode, before = mem.stat().st_ino, digest(mem)

    # The others' disks are raw: they are copied, which the receipt says.
    all_shared = (await template.info()).driver == "qemu"
    forks = await template.fork(FORKS, require_shared=all_shared)

    receipts = [fork.receipt for fork in forks]
    assert {receipt.memory.mode for receipt in receipts} == {"shared"}
    assert {receipt.memory.inode for receipt in receipts} == {inode}
    assert {receipt.memory.links for receipt in receipts} == {FORKS + 1}
    disks = [disk.mode for receipt in receipts for disk in receipt.disks]
    assert len(disks) == FORKS
    assert set(disks) == {"shared"} if all_shared else set(disks) <= {"reflinked", "copied"}
    for what in ("machine_id", "hostname", "boot_random"):
        assert len({getattr(receipt.identity, what) for receipt in receipts}) == FORKS, what
    for fork, receipt in zip(forks, receipts, strict=True):
        assert (Path(receipt.directory) / receipt.memory.file).stat().st_ino == inode
        identity = receipt.identity
        seen = (await said(fork, "hostname; cat /etc/machine-id /run/ramet/generation")).split()
        assert seen == [identity.hostname, identity.machine_id, "2"]

    # What was warm is warm in every fork; what one writes, over the same pages, no other sees.
    for fork in forks:
        assert await said(fork, "md5sum < /tmp/data") == data
    for number, fork in enumerate(forks):
        fill = f"yes pattern-{number} | dd of=/tmp/data bs=64k count=64 iflag=fullblock conv=notrunc 2>&1"
        await said(fork, fill)
    for number, fork in enumerate(forks):
        lines = await said(fork, "head -c 4194304 /tmp/data | sort | uniq -c | sort -rn | head -n 1")
        assert lines.split()[1] == f"pattern-{number}"
    assert digest(mem) == before

    # The same sectors of everybody's disk.
    for number, fork in enumerate(forks):
        assert await said(fork, "head -n 1 /dev/vda") == "source"
        await said(fork, f"echo disk-{number} | dd of=/dev/vda bs=512 conv=notrunc,fsync 2>&1")
    for number, fork in enumerate(forks):
        assert await said(fork, "head -n 1 /dev/vda") == f"disk-{number}"

    # A program that ran in the source runs on in each fork, also when template and siblings have gone.
    first, second, *others = forks
    await template.remove()
    for fork in others:
        await fork.remove(force=True)
    assert (first.directory / "mem").stat().st_nlink == 2
    for fork in (first, second):
        # A limit in the guest: should the counter stop, exec says so.
        script = "was=$(cat /run/count); while [ $(cat /run/count) -le $((was + 1)) ]; do sleep 0.2; done"
        result = await fork.exec("timeout", "60", "sh", "-c", script)
        assert result.ok, f"{fork.name}: the counter of the source has stopped"

    # A fork can be forked in its turn, over the same file, and that doesn't touch what its sibling runs on.
    sibling = digest(second.directory / "mem")
    again = await first.template()
    (grandchild,) = await again.fork(1, require_shared=all_shared)
    assert grandchild.receipt.memory.mode in {"delta", "shared"}  # shared once the delta has been compacted
    await again.remove()
    assert grandchild.receipt.identity.generation == 3
    assert (await said(grandchild, "head -n 1 /tmp/data")) == "pattern-0"
    assert (await said(grandchild, "head -n 1 /dev/vda")) == "disk-0"
    assert (await said(second, "head -n 1 /tmp/data")) == "pattern-1"
    assert digest(second.directory / "mem") == sibling


async def test_forks_end_alone(source: ramet.VM) -> None:
    """Each fork has a VMM of its own: one that is removed takes nothing along."""
    template = await source.template()
    first, second = await template.fork(2)
    gone = first.directory
    await first.remove(force=True)
    assert living_in(gone) == []
    assert not gone.exists()
    assert (await second.exec("true")).ok
    # A guest powers itself off, whichever way its machine does that.
    await second.stop()
    assert (await second.info()).state == "stopped"
