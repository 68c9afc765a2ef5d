"""Forks: what each proves, and that none sees another."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

import ramet
from ramet.engine.agent.identity import verify_identity
from ramet.memory.integrity import digest
from ramet.model import protocols
from ramet.units import MIB
from tests.conftest import living_in
from tests.support.lost_vmm import lose_the_second_vmm

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def until(vm: protocols.VM, command: str) -> None:
    """Wait until a command in the guest succeeds."""
    with anyio.fail_after(30):
        while not (await vm.exec("sh", "-c", command)).ok:
            await anyio.sleep(0.05)


def mapped(pid: int, inode: int) -> list[str]:
    """The permissions of the mappings of that inode."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[4] == str(inode)]


@pytest.mark.proves("I5")
@pytest.mark.core
async def test_every_fork_is_its_own_and_shares_one_inode(warm: ramet.VM) -> None:
    template = warm.directory / "mem"
    async with warm.fork(6, require_shared=True) as forks:
        receipts = [vm.receipt for vm in forks]
        assert {receipt.memory.mode for receipt in receipts} == {"shared"}
        assert {receipt.memory.inode for receipt in receipts} == {template.stat().st_ino}
        assert {receipt.memory.links for receipt in receipts} == {template.stat().st_nlink} == {7}
        for what in ("machine_id", "hostname", "boot_random"):
            assert len({getattr(receipt.identity, what) for receipt in receipts}) == 6, what
        assert {receipt.identity.generation for receipt in receipts} == {2}
        for receipt in receipts:
            file = Path(receipt.directory) / receipt.memory.file
            assert file.stat().st_ino == receipt.memory.inode
            # An old QEMU opens it for writing, for which root needs no permission and an ordinary user does.
            never_writable = os.geteuid() == 0 or receipt.memory.immutability.startswith("enforced")
            assert file.stat().st_mode & (0o222 if never_writable else 0o022) == 0
            assert mapped(receipt.pid, receipt.memory.inode) == ["rw-p"], "mapped once, privately"
            parts = receipt.timings_ms
            assert parts.pause == 0
            assert parts.total == pytest.approx(
                parts.queued + parts.clone + parts.spawn + parts.load + parts.resume + parts.ready, abs=1
            )
        # The guest agrees with the receipt.
        for vm, receipt in zip(forks, receipts, strict=True):
            said = await vm.exec(
                "sh", "-c", "hostname; cat /etc/machine-id /run/ramet/generation /etc/hostname"
            )
            identity = receipt.identity
            assert said.text.split() == [identity.hostname, identity.machine_id, "2", identity.hostname]
            assert identity.hostname == vm.name


@pytest.mark.proves("I5")
async def test_files_of_the_identity_that_others_have_touched(host: protocols.Host) -> None:
    """The agent writes them in place, through descriptors from before the fork, where they still are
    what their paths lead to; a file that somebody has moved or linked isn't written through.
    """
    source = await host.run(name="a-name-that-is-longer-than-its-forks", memory="128M")
    touched = await source.exec(
        "sh",
        "-ec",
        "cp /etc/machine-id /tmp/id; ln /etc/machine-id /etc/linked; mv /etc/hostname /etc/moved; "
        "printf '10.0.0.9 db' >> /etc/hosts; rm -r /run/ramet",
    )
    assert touched.exit_code == 0, touched.stderr
    old_id = (await source.exec("cat", "/tmp/id")).text
    base = await source.template()
    read = "cat /etc/hostname /etc/machine-id /run/ramet/generation; echo; cat /etc/hosts"
    for name in ("short", "a-name-that-is-longer-again-than-that-of-its-source"):
        (fork,) = await base.fork(1, name=name)
        said = (await fork.exec("sh", "-c", read)).text
        identity = fork.receipt.identity
        files, _, hosts = said.partition("\n\n")
        assert files.splitlines() == [identity.hostname, identity.machine_id, "2"]
        assert hosts.splitlines()[-2:] == ["10.0.0.9 db", f"127.0.1.1\t{identity.hostname}"]
        assert hosts.count("127.0.1.1") == 1
        assert (await fork.exec("cat", "/etc/linked")).text == old_id
        assert (await fork.exec("cat", "/etc/moved")).text == f"{source.name}\n"
        # Once more, now in place.
        (again,) = await (await fork.template()).fork(1, name=f"x-{name}"[:40])
        said = (await again.exec("sh", "-c", read)).text
        files, _, hosts = said.partition("\n\n")
        assert files.splitlines() == [again.receipt.identity.hostname, again.receipt.identity.machine_id, "3"]
        assert hosts.splitlines()[-2:] == ["10.0.0.9 db", f"127.0.1.1\t{again.receipt.identity.hostname}"]
        assert hosts.count("127.0.1.1") == 1


async def test_a_mount_over_a_file_of_the_identity(warm: protocols.VM) -> None:
    """The kernel has told the agent of it: the fork's name is where programs look for it."""
    (source,) = await warm.fork(1, name="source")
    script = "mount -t tmpfs none /mnt; echo x > /mnt/name; mount --bind /mnt/name /etc/hostname"
    await source.exec("sh", "-ec", script, check=True)
    base = await source.template()
    for name in "short", "a-longer-name":
        (fork,) = await base.fork(1, name=name)
        assert (await fork.exec("cat", "/etc/hostname")).text == f"{name}\n"
        await fork.exec("umount", "-l", "/etc/hostname", check=True)
        (again,) = await (await fork.template()).fork(1, name=f"{name}-again")
        assert (await again.exec("cat", "/etc/hostname")).text == f"{name}-again\n"


async def test_a_fork_is_asked_over_a_port_that_was_opened_before_it_went_on(
    warm: protocols.VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a source whose port is free when it is captured, and of one where a command is under way on it."""
    streams: list[ByteStream | None] = []

    async def noting(*arguments: Any, stream: ByteStream | None, **options: Any) -> Any:
        streams.append(stream)
        return await verify_identity(*arguments, stream=stream, **options)

    (source,) = await warm.fork(1, name="source")
    monkeypatch.setattr("ramet.engine.restore.load.verify_identity", noting)
    made = await source.snapshot("before")
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            for fork in [*await source.fork(1), *await made.fork(1)]:
                assert (await fork.exec("hostname")).text == f"{fork.name}\n"
            tasks.start_soon(partial(source.exec, "sleep", "100", timeout=100))
            await until(source, "pidof sleep")
        tasks.cancel_scope.cancel()
    await source.rewind("before")
    assert (await source.exec("hostname")).text == "source\n"
    assert len(streams) == 5
    assert None not in streams
    await made.remove()


async def test_forks_write_the_same_pages_and_see_only_their_own(warm: ramet.VM) -> None:
    before = digest(warm.directory / "mem")
    original = (await sums(await warm.fork(1)))[0]
    forks = await warm.fork(8)
    assert await sums(forks) == [original] * 8
    # The same MiB of the same file in every guest: the same guest pages, as the parent laid them out.
    async with anyio.create_task_group() as tasks:
        for number, vm in enumerate(forks):
            fill = f"yes pattern-{number} | dd of=/tmp/data bs=64k count=16 iflag=fullblock conv=notrunc"
            tasks.start_soon(vm.exec, "sh", "-c", fill)
    seen = await forks.exec("sh", "-c", "head -c 1048576 /tmp/data | md5sum")
    for number, result in enumerate(seen):
        assert isinstance(result, ramet.ExecResult)
        written = (f"pattern-{number}\n".encode() * MIB)[:MIB]
        assert result.text.split()[0] == hashlib.md5(written).hexdigest()
    assert len({*await sums(forks), original}) == 9
    assert digest(warm.directory / "mem") == before
    assert await sums(await warm.fork(1)) == [original]


async def sums(forks: protocols.Forks) -> list[str]:
    results = await forks.exec("md5sum", "/tmp/data")
    return [result.text.split()[0] for result in results if isinstance(result, ramet.ExecResult)]


@pytest.mark.proves("I3")
@pytest.mark.core
async def test_forks_outlive_template_and_source(host: ramet.Host) -> None:
    """I3: template deleted, then its fork's template deleted; what is left neither stops nor misses
    anything.
    """
    source = await host.run(name="source", memory="128M")
    await source.exec("sh", "-c", "echo first > /tmp/mark", check=True)
    base = await source.template()
    inode = (base.directory / "mem").stat().st_ino
    first, second = await base.fork(2)
    await base.remove()
    assert not base.directory.exists()
    assert (first.directory / "mem").stat().st_nlink == 2
    assert (await first.exec("cat", "/tmp/mark")).text == "first\n"
    # A fork of a fork: its capture is the same inode, which stays as it is, and what it has changed.
    sibling_digest = digest(second.directory / "mem")
    await first.exec("sh", "-c", "echo second >> /tmp/mark", check=True)
    again = await first.template()
    assert (again.directory / "mem").stat().st_ino == inode
    assert 0 < (again.directory / "delta").stat().st_size < 32 * MIB
    assert digest(second.directory / "mem") == sibling_digest
    (third,) = await again.fork(1, require_shared=True)
    assert third.receipt.memory.mode == "delta"
    await again.remove()
    assert (await third.exec("cat", "/tmp/mark")).text == "first\nsecond\n"
    assert third.receipt.identity.generation == 3
    assert (await second.exec("cat", "/tmp/mark")).text == "first\n"


@pytest.mark.proves("I4")
async def test_copying_is_named_and_sharing_can_be_required(warm: ramet.VM) -> None:
    async with warm.fork(1, share_memory=False) as (fork,):
        assert fork.receipt.memory.mode == "copied"
        assert fork.receipt.memory.inode != (warm.directory / "mem").stat().st_ino
        assert (await fork.exec("true")).ok
    with pytest.raises(ramet.UsageError):
        await warm.fork(1, share_memory=False, require_shared=True)


@pytest.mark.proves("I7")
async def test_some_fail_alone(
    warm: ramet.VM, warm_host: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One VMM of four is killed before it can answer: three forks live, one error says what happened,
    nothing is left of it.
    """
    resumed = lose_the_second_vmm(monkeypatch)
    results: list[object] = [*await warm.fork(4, return_exceptions=True)]
    failures = [result for result in results if isinstance(result, Exception)]
    assert len(results) == 4
    assert len(failures) == 1
    assert isinstance(failures[0], ramet.VmmError)
    living = [result for result in results if isinstance(result, ramet.VM)]
    assert [(await vm.exec("true")).ok for vm in living] == [True] * 3
    assert len(list((warm_host.home / "instances").iterdir())) == 4
    resumed.clear()
    with pytest.raises(ramet.ForkError) as caught:
        await warm.fork(3)
    assert len(caught.value.forks) == 2
    assert len(caught.value.errors) == 1
    assert caught.value.exit_code == 6


@pytest.mark.proves("I7")
@pytest.mark.timing
async def test_a_cancelled_fork_leaves_nothing(warm: protocols.VM, warm_home: Path) -> None:
    cancelled = 0
    for delay_s in (0.0, 0.03, 0.08, 0.15, 0.25):
        with anyio.move_on_after(delay_s) as scope:
            await warm.fork(4)
        if scope.cancelled_caught:
            cancelled += 1
            assert [path.name for path in (warm_home / "instances").iterdir()] == [warm.id]
            assert living_in(warm_home) == []
    assert cancelled >= 3


async def test_altered_parts_are_refused_before_a_vmm_is_spawned(warm: ramet.VM) -> None:
    """Also without a trace in what stat(2) says."""
    base = await (await warm.fork(1))[0].template()
    vmstate = base.directory / "vmstate"
    was, whole = vmstate.stat(), vmstate.read_bytes()
    for content in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole):
        vmstate.chmod(0o600)
        vmstate.write_bytes(content)
        vmstate.chmod(0o444)
        os.utime(vmstate, ns=(was.st_atime_ns, was.st_mtime_ns))
        if content != whole:
            with pytest.raises(ramet.DamagedError, match="vmstate"):
                await base.fork(1)
    async with base.fork(1) as (fork,):
        assert (await fork.exec("true")).ok


async def test_what_cannot_be_forked_says_why(warm: protocols.VM) -> None:
    (running,) = await warm.fork(1)
    await running.stop(timeout=0)
    with pytest.raises(ramet.WrongStateError, match="stopped"):
        await running.fork(1)
    for count in (0, -1, 100_000):
        with pytest.raises(ramet.UsageError):
            await warm.fork(count)
    with pytest.raises(ramet.UsageError, match="legal name"):
        await warm.fork(1, name="no spaces")


async def test_names_of_forks(warm: protocols.VM) -> None:
    async with warm.fork(2, name="team") as named, warm.fork(2) as unnamed:
        assert [vm.name for vm in named] == ["team-1", "team-2"]
        assert [path.name for path in unnamed] == ["warm-1", "warm-2"]
        with pytest.raises(ramet.NameTakenError):
            await warm.fork(1, name="team-1")


async def test_keep_one(warm: protocols.VM, warm_host: protocols.Host) -> None:
    async with warm.fork(3) as forks:
        await forks[1].keep()
        assert [instance.name for instance in await warm_host.list()] == ["warm", forks[1].name]
    assert (await forks[1].exec("true")).ok
    await forks[1].remove(force=True)
