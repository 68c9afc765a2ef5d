"""The case that ramet began with, of a container image: its guests share memory and the image's files.

The same tests on a machine whose own KVM runs Linux and in the emulated host.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.errors import UnavailableError, UsageError
from ramet.images.library.library import Library
from ramet.images.library.records import ContainerImage
from ramet.memory.integrity import digest
from ramet.model.lifecycle import State
from tests.support.containers import LARGE, layers, run
from tests.unit.images.sources.archives import one_image, write

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(900)]

FORKS = 4
_SERVICE = (
    'trap "exit 7" TERM; head -c 2097152 /dev/urandom > /tmp/data; echo ready > /tmp/ready;'
    " while [ ! -e /tmp/end ]; do sleep 0.1; done; exit $(cat /tmp/end)"
)
_CONFIG = {
    "Entrypoint": ["/bin/sh", "-c"], "Cmd": [_SERVICE], "Env": ["COLOR=blue"],
    "User": "app", "WorkingDir": "/work",
}  # fmt: skip


@pytest.fixture
async def image(host: ramet.Host, tmp_path: Path) -> ContainerImage:
    """A small image in the home, which an OCI layout had."""
    layout = write(one_image(layers=layers(), settings=_CONFIG), tmp_path / "layout")
    await host.import_image(layout, name="tiny")
    return Library(host.home / "images", part_digest=digest).get("tiny")


async def booted(host: ramet.Host, image: ContainerImage, driver: str, rootfs: str) -> ramet.VM:
    """A running guest of the image whose main process has got ready."""
    try:
        vm = await run(host, image, name="source", driver=driver, rootfs=rootfs, disks=["16M:/data"])
    except (UsageError, UnavailableError) as error:
        if isinstance(error, UsageError) and "no driver" not in error.message:
            raise
        pytest.skip(str(error))
    info = await vm.info()
    assert (info.driver, info.accelerator) == (driver, "kvm")
    wait = "while [ ! -e /tmp/ready ]; do sleep 0.1; done"
    await vm.exec("sh", "-c", wait, check=True, timeout=120)
    return vm


async def said(vm: ramet.VM, script: str, user: str = "root") -> str:
    return (await vm.exec("sh", "-c", script, user=user, check=True, timeout=120)).text.strip()


@pytest.mark.parametrize(
    ("driver", "rootfs"),
    [
        ("firecracker", "disk:256M"),
        ("firecracker", "ram:32M"),
        ("qemu", "disk:256M"),
        ("cloud-hypervisor", "disk:256M"),
    ],
)
async def test_forks_of_an_image_share_it_and_outlive_their_source(
    host: ramet.Host, image: ContainerImage, driver: str, rootfs: str
) -> None:
    source = await booted(host, image, driver, rootfs)
    assert await said(source, 'echo "$COLOR"; pwd; id -u', user="app") == "blue\n/work\n1000"
    data = await said(source, "md5sum < /tmp/data")
    await said(source, "echo source > /note; echo source > /data/note; sync")
    template = await source.template()
    mem = template.directory / "mem"
    inode, before = mem.stat().st_ino, digest(mem)
    forks = await template.fork(FORKS)
    of_library = [image.path_of(base).stat().st_ino for base in image.bases]
    for fork in forks:
        assert (fork.receipt.memory.mode, fork.receipt.memory.inode) == ("shared", inode)
        assert [base.mode for base in fork.receipt.bases] == ["shared", "shared"]
        assert [base.inode for base in fork.receipt.bases] == of_library
        assert [(fork.directory / base.file).stat().st_ino for base in image.bases] == of_library
    await template.remove()

    # A layer that the source had never read; what one writes, no other sees.
    for fork in forks:
        assert (await said(fork, "md5sum < /large")).split()[0] == hashlib.md5(LARGE).hexdigest()
        assert await said(fork, "md5sum < /tmp/data") == data
    for number, fork in enumerate(forks):
        assert await said(fork, "cat /note /data/note") == "source\nsource"
        await said(fork, f"echo {number} > /note; echo {number} > /data/note; echo {number} > /large; sync")
    for number, fork in enumerate(forks):
        assert await said(fork, "cat /note /data/note /large") == f"{number}\n{number}\n{number}"
    assert digest(forks[0].directory / "mem") == before

    # The main process of the source is each fork's own; its end is the fork's.
    first, second, third, fourth = forks
    await said(first, "echo 21 > /tmp/end")
    with anyio.fail_after(120):
        await first.wait()
    assert ((await first.info()).state, (await first.info()).exit_code) == (State.STOPPED, 21)
    stopped = await second.stop()
    assert (stopped.state, stopped.exit_code) == (State.STOPPED, 7)
    if rootfs.startswith("disk"):
        await second.start()
        assert await said(second, "cat /note /data/note") == "1\n1"
    await third.standby()
    await third.restore()
    assert await said(third, "cat /note /large") == "2\n2"
    (branch,) = await fourth.fork(1)
    assert await said(branch, "cat /note /large") == "3\n3"
    assert [base.inode for base in branch.receipt.bases] == of_library
