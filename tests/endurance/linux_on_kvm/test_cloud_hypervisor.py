"""What is Cloud Hypervisor's own: whole deltas, RAM above 3 GiB, resets, clocks, disks that look like other
formats, a console without a limit near by. Skipped without a binary, with `ramet doctor`'s reason.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import anyio
import pytest

import ramet
from ramet.drivers.cloud_hypervisor.vmm import CloudHypervisorVmm
from ramet.errors import UnavailableError, UsageError, VmmError
from ramet.memory.delta import open_delta, write_delta
from ramet.memory.integrity import digest
from ramet.memory.mappings import find_mapping, identity_of
from ramet.memory.pagemap import changed_runs
from ramet.memory.pages import LivePages
from ramet.paths import MEM_FILE, VMSTATE_FILE
from ramet.system import bounded_log, processes
from ramet.units import KIB, MIB

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(900)]

FORKS: Final = 25
QFI: Final = b"QFI\xfb"
FOOTER: Final = (
    b"conectix"  # a fixed VHD's: cookie, features, version, data offset, then up to the disk's type
    + bytes.fromhex("00000002 00010000 ffffffffffffffff 27a6a65d 71656d75 00050003 5769326b")
    + bytes.fromhex("0000000010000000 0000000010000000 11e0103f 00000002")
)


async def run(host: ramet.Host, memory: str = "128M", disks: tuple[str, ...] = ()) -> ramet.VM:
    """A running guest under Cloud Hypervisor."""
    try:
        return await host.run("builtin", driver="cloud-hypervisor", memory=memory, disks=list(disks))
    except (UsageError, UnavailableError) as error:
        if isinstance(error, UsageError) and "no driver" not in error.message:
            raise
        pytest.skip(str(error))


async def said(vm: ramet.VM, script: str) -> str:
    return (await vm.exec("sh", "-c", script, check=True)).text.strip()


def vmm_of(vm: ramet.VM) -> CloudHypervisorVmm:
    context = vm._context
    vmm = context.vmm(context.store.get(vm.id))
    assert isinstance(vmm, CloudHypervisorVmm)
    return vmm


async def different_pages(vm: ramet.VM, memory_bytes: int) -> tuple[int, int]:
    """Pages of a delta over the mem-file, and of these and all others those that differ from what the VMM
    itself saves in the same pause.
    """
    vmm, directory = vmm_of(vm), vm.directory
    delta, dense, vmstate = (directory / name for name in ("all.delta", "all.mem", "all.vmstate"))
    await vmm.pause()
    try:
        await vmm.save_with_ram(vmstate.name, dense.name)
        pid = vmm.process.pid
        runs = changed_runs(pid, find_mapping(pid, identity_of(directory / MEM_FILE)))
        write_delta(delta, LivePages(pid, runs), memory_bytes=memory_bytes)
    finally:
        await vmm.resume()
    try:
        ours = bytearray((directory / MEM_FILE).read_bytes())
        pages = 0
        with delta.open("rb") as file, open_delta(file.fileno(), memory_bytes) as opened:
            for run in opened.runs():
                pages += run.length_bytes // 4096
                data = (
                    bytes(run.length_bytes)
                    if run.data_offset is None
                    else os.pread(file.fileno(), run.length_bytes, run.data_offset)
                )
                ours[run.file_offset : run.file_offset + run.length_bytes] = data
        theirs = dense.read_bytes()
        assert len(theirs) == len(ours)
        if ours == theirs:
            return pages, 0
        spots = range(0, len(ours), 4096)
        return pages, sum(ours[at : at + 4096] != theirs[at : at + 4096] for at in spots)
    finally:
        for path in (delta, dense, vmstate):
            path.unlink(missing_ok=True)


async def test_a_delta_is_all_of_ram_at_every_depth(host: ramet.Host) -> None:
    """With a disk that is written and a stream that comes over vsock while it is taken."""
    vm = await run(host, "96M", ("16M",))
    write = (
        "while :; do head -c 1000000 /dev/urandom > /run/w; cat /run/w > /dev/vda; sync;"
        " echo 3 > /proc/sys/vm/drop_caches;"
        " head -c 1000000 /dev/vda | cmp - /run/w || echo bad > /run/bad; done"
    )
    await vm.exec("sh", "-c", f"({write}) </dev/null >/dev/null 2>&1 &", check=True)
    streamed: list[int] = []

    async def stream() -> None:
        done = await vm.exec("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); echo line $i; done")
        streamed.append(done.stdout.count(b"\n"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream)
        await anyio.sleep(1)
        pages, different = await different_pages(vm, 96 * MIB)
    assert (different, streamed) == (0, [20000])
    assert pages > 100
    for _ in range(2):
        (vm,) = await vm.fork(1)
        await anyio.sleep(2)
        _, different = await different_pages(vm, 96 * MIB)
        assert different == 0
    assert (
        await said(vm, "cat /run/bad 2>/dev/null; dmesg | grep -ci 'i/o error\\|blocked for' || true") == "0"
    )


@pytest.mark.parametrize("memory", ["3174M", "4096M"])
async def test_ram_above_the_gap_goes_to_forks_and_their_forks(host: ramet.Host, memory: str) -> None:
    vm = await run(host, memory)
    await said(vm, "mkdir /run/big; mount -t tmpfs -o size=95% big /run/big")
    # Linux takes its upper memory first. With 102 MiB of it, the file lies on both sides of the gap.
    await said(vm, "dd if=/dev/urandom of=/run/big/data bs=1M count=160 2>&1")
    want = await said(vm, "md5sum < /run/big/data")
    (fork,) = await vm.fork(1)
    assert await said(fork, "md5sum < /run/big/data") == want
    await said(fork, "dd if=/dev/urandom of=/run/big/data bs=1M count=8 conv=notrunc 2>&1")
    changed = await said(fork, "md5sum < /run/big/data")
    (child,) = await fork.fork(1)
    assert await said(child, "md5sum < /run/big/data") == changed
    assert await said(vm, "md5sum < /run/big/data") == want


async def test_forks_of_one_mem_file_share_it_and_outlive_their_source(host: ramet.Host) -> None:
    vm = await run(host)
    await said(vm, "head -c 4194304 /dev/urandom > /tmp/data")
    data = await said(vm, "md5sum < /tmp/data")
    template = await vm.template()
    mem = template.directory / MEM_FILE
    inode, before = mem.stat().st_ino, digest(mem)
    forks = await template.fork(FORKS, require_shared=True)
    assert {fork.receipt.memory.inode for fork in forks} == {inode}
    assert mem.stat().st_nlink == FORKS + 1
    for number, fork in enumerate(forks):
        assert await said(fork, f"md5sum < /tmp/data; echo {number} > /tmp/data") == data
    assert digest(mem) == before
    await template.remove()
    for number, fork in enumerate(forks):
        assert await said(fork, "cat /tmp/data") == str(number)
    first = forks[0]
    pids = [(await fork.info()).pid for fork in forks]
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    lines = [line for text in rollups for line in text.splitlines() if line.startswith("Pss:")]
    proportional = sum(int(line.split()[1]) for line in lines)
    # Far from a copy each: the bound is loose, the figure is what a reader of `-s` wants.
    links = (first.directory / MEM_FILE).stat().st_nlink
    print(f"{FORKS} forks: {proportional // FORKS} KiB of PSS each, {links} links")
    assert proportional / FORKS < 128 * 1024 / 3


@pytest.mark.parametrize("is_fork", [False, True])
async def test_a_reset_ends_the_vmm_and_boots_nothing_on_the_mem_file(
    host: ramet.Host, is_fork: bool
) -> None:
    """By itself the VMM would boot again, on the file that its forks, or its siblings, share."""
    vm = await run(host)
    template = await vm.template()
    mem = template.directory / MEM_FILE
    before = digest(mem)
    if is_fork:
        (vm,) = await template.fork(1)
    else:
        vm = await run(host)
    ended = vmm_of(vm).process
    await vm.exec("sh", "-c", "(sleep 0.5; reboot -f) </dev/null >/dev/null 2>&1 &")
    assert await processes.wait_ended(ended, timeout_s=120)
    with anyio.fail_after(120):
        while (await vm.info()).pid in {None, ended.pid}:
            await anyio.sleep(0.5)
    assert await said(vm, "cut -d. -f1 /proc/uptime; hostname") != ""
    assert (vm.directory / MEM_FILE).stat().st_ino != mem.stat().st_ino
    assert digest(mem) == before
    (again,) = await template.fork(1)
    assert await said(again, "echo up") == "up"


async def test_monotonic_time_goes_on_where_it_was(host: ramet.Host) -> None:
    vm = await run(host)
    snapshot = await vm.snapshot("then")
    then = float((await said(vm, "cat /proc/uptime")).split()[0])
    await anyio.sleep(30)
    (fork,) = await snapshot.fork(1)
    uptime, now = (await said(fork, "cat /proc/uptime; date +%s")).split("\n")
    assert float(uptime.split()[0]) < then + 25
    assert abs(float(now) - float(await said(vm, "date +%s"))) < 10
    await snapshot.remove()


async def test_a_guest_cannot_keep_its_forks_from_being_restored(host: ramet.Host) -> None:
    """By what it writes to its raw disk: qcow2's magic at the beginning, a fixed VHD's footer at the end."""
    vm = await run(host, "96M", ("4M",))
    octal = "".join(f"\\{byte:03o}" for byte in QFI), "".join(f"\\{byte:03o}" for byte in FOOTER)
    await said(
        vm,
        f"printf '{octal[0]}' | dd of=/dev/vda bs=512 conv=notrunc,fsync 2>&1;"
        f" printf '{octal[1]}' | dd of=/dev/vda bs=512 seek={4 * MIB // 512 - 1} conv=notrunc,fsync 2>&1",
    )
    (fork,) = await vm.fork(1)
    read = (
        "echo 3 > /proc/sys/vm/drop_caches; head -c 4 /dev/vda | od -An -tx1;"
        " tail -c 512 /dev/vda | head -c 8"
    )
    for guest in (fork, vm):
        assert (await said(guest, read)).split() == ["51", "46", "49", "fb", "conectix"]
    await vm.standby()
    await vm.restore()
    assert (await said(vm, read)).split()[-1] == "conectix"
    await fork.stop()
    with pytest.raises(VmmError, match="looks like a qcow2 file"):
        await fork.start()
    assert (await fork.info()).state == "stopped"


async def test_a_console_that_was_cut_can_be_written_on(host: ramet.Host) -> None:
    vm = await run(host, "96M")
    log = vm.directory / "console.log"
    await vm.exec("sh", "-c", "(yes 0123456789abcdef > /dev/ttyS0) </dev/null >/dev/null 2>&1 &", check=True)
    for _ in range(2):
        with anyio.fail_after(120):
            while log.stat().st_size <= 16 * KIB:
                await anyio.sleep(0.5)
        assert bounded_log.trim(log, keep_bytes=KIB, above_bytes=4 * KIB)
        assert log.stat().st_size < 8 * KIB
    await said(vm, "pkill yes; echo the end > /dev/ttyS0")
    with anyio.fail_after(60):  # what the terminal holds comes before
        while b"the end" not in log.read_bytes()[-2000:]:
            await anyio.sleep(0.5)


def without_boot_ram(vmstate: str) -> str:
    """A vmstate that ramet finds nothing wrong about, and that its VMM refuses."""
    document = json.loads(vmstate)
    data = document["state"]["snapshots"]["memory-manager"]["snapshot_data"]
    inner = json.loads(data["state"])
    del inner["boot_ram"]
    data["state"] = json.dumps(inner)
    return json.dumps(document)


async def test_a_vmm_takes_another_load_after_one_that_was_refused(host: ramet.Host, tmp_path: Path) -> None:
    vm = await run(host, "96M", ("4M",))
    snapshot = await vm.snapshot("s")
    (fork,) = await snapshot.fork(1)
    context = fork._context
    record = context.store.get(fork.id)
    driver = context.driver(record.driver)
    place = context.home.root / "another"
    place.mkdir(mode=0o700)
    for name in (MEM_FILE, VMSTATE_FILE):
        os.link(fork.directory / name, place / name)
    vmm = await driver.restore(place, record.machine)
    try:
        disk = place / record.machine.disks[0].file
        disk.touch()
        os.truncate(disk, record.machine.disks[0].size_bytes)
        (place / "vmstate-of-another").write_text(without_boot_ram((place / VMSTATE_FILE).read_text()))
        with pytest.raises(VmmError, match=r"Cloud Hypervisor refused PUT vm.restore: .*boot_ram"):
            await vmm.load_vmstate("vmstate-of-another")
        assert await vmm.status() == "not started"
        (place / "vsock.sock").touch()
        await vmm.load_vmstate(VMSTATE_FILE)
        assert await vmm.status() == "paused"
    finally:
        await vmm.kill()
        await snapshot.remove()
