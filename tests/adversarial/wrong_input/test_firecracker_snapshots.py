"""What can be wrong with a Firecracker snapshot, its host and its VMM: one error each, nothing left, the
other forks unharmed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec
import pytest

import ramet
from ramet.drivers import versions
from ramet.drivers.firecracker.driver import Firecracker
from ramet.drivers.firecracker.vmm import FirecrackerVmm
from ramet.drivers.interface import Ability
from ramet.engine.manifest import Manifest
from ramet.model.record import HostCpu
from ramet.paths import MANIFEST_FILE, MEM_FILE, VMSTATE_FILE
from ramet.system.copying import copy_sparse
from ramet.system.kvm_kind import kvm_kind
from tests.conftest import living_in
from tests.support.lost_vmm import lose_the_second_vmm
from tests.support.probes import DATA_ADDRESS, MakeTemplate

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)]


async def refused(
    template: ramet.VM, home: Path, kind: type[ramet.RametError], *words: str, require_shared: bool = False
) -> None:
    """A fork is refused with that kind of error and those words; nothing of it is left."""
    before = living_in(home), sorted((home / "instances").iterdir())
    with pytest.raises(ramet.RametError) as caught:
        await template.fork(1, require_shared=require_shared)
    error: BaseException = caught.value
    if isinstance(error, ramet.ForkError):
        (error,) = error.errors.values()
    assert isinstance(error, kind)
    for word in words:
        assert word in str(error)
    assert (living_in(home), sorted((home / "instances").iterdir())) == before


def rewrite(path: Path, content: bytes) -> None:
    """Other content under the same name, all that `stat` says kept where the size is."""
    was = path.stat()
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(was.st_mode & 0o777)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


async def test_parts_that_were_cut_or_altered(make_template: MakeTemplate, home: Path) -> None:
    template = await make_template("128M")
    (sibling,) = await template.fork(1)
    vmstate, mem = template.directory / VMSTATE_FILE, template.directory / MEM_FILE
    whole = vmstate.read_bytes()
    # The sibling has the same inodes: for these trials the template gets files of its own.
    for path in (vmstate, mem):
        was = path.stat()
        copy_sparse(path, path.with_name("copy"))
        path.with_name("copy").chmod(0o444)
        path.with_name("copy").replace(path)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    rewrite(vmstate, whole[:-100])
    await refused(template, home, ramet.DamagedError, "vmstate", "size_bytes")
    # Altered without a trace in stat.
    rewrite(vmstate, whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    await refused(template, home, ramet.DamagedError, "vmstate is damaged")
    rewrite(vmstate, whole)
    size = mem.stat().st_size
    mem.chmod(0o600)
    os.truncate(mem, size - 4096)
    mem.chmod(0o444)
    await refused(template, home, ramet.DamagedError, "mem", "size_bytes")
    assert (await sibling.exec("peek", hex(DATA_ADDRESS), check=True)).text.split() == [f"{0x1111:016x}"]


def with_manifest(template: ramet.VM, change: Callable[[Manifest], Manifest]) -> None:
    """Change what the template's manifest says."""
    path = template.directory / MANIFEST_FILE
    manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    path.write_bytes(change(manifest).encoded())


async def test_a_snapshot_of_another_firecracker_or_processor(
    make_template: MakeTemplate, home: Path
) -> None:
    template = await make_template("128M")
    original = (template.directory / MANIFEST_FILE).read_bytes()
    ours = msgspec.json.decode(original, type=Manifest)
    assert ours.host_cpu is not None
    with_manifest(template, lambda row: msgspec.structs.replace(row, driver_version="1.9.3"))
    await refused(template, home, ramet.UnavailableError, "1.9.3", ours.driver_version)
    other = HostCpu(name="Other Processor 9000", kind="OtherVendor 6 99", features=())
    with_manifest(template, lambda _: msgspec.structs.replace(ours, host_cpu=other))
    await refused(template, home, ramet.UnavailableError, "Other Processor 9000", ours.host_cpu.name)
    newer = msgspec.structs.replace(ours.host_cpu, features=(*ours.host_cpu.features, "amx_future"))
    with_manifest(template, lambda _: msgspec.structs.replace(ours, host_cpu=newer))
    await refused(template, home, ramet.UnavailableError, "amx_future", ours.host_cpu.name)
    # PVM and a processor's own virtualization keep their guests apart; what says nothing is taken as it was.
    assert ours.kvm == kvm_kind()
    if ours.kvm != "unknown":
        foreign = "kvm_intel" if ours.kvm == "kvm_pvm" else "kvm_pvm"
        with_manifest(template, lambda _: msgspec.structs.replace(ours, kvm=foreign))
        await refused(template, home, ramet.UnavailableError, foreign, ours.kvm)
    with_manifest(template, lambda _: msgspec.structs.replace(ours, kvm=None))
    await template.fork(1)
    (template.directory / MANIFEST_FILE).write_bytes(original)
    await template.fork(1)


async def test_no_firecracker(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_FIRECRACKER", "/nowhere/firecracker")
    async with ramet.Host(home) as host:
        with pytest.raises(ramet.UnavailableError, match="/nowhere/firecracker") as caught:
            await host.run("probe", driver="firecracker")
        assert "RAMET_FIRECRACKER" in str(caught.value)
        assert await host.list(everything=True) == []


@pytest.mark.timing
async def test_a_firecracker_that_hangs_is_none(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = tmp_path / "firecracker"
    hangs.write_text("#!/bin/sh\nexec sleep 100\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(versions, "LIMIT_S", 0.5)
    with anyio.fail_after(60), pytest.raises(ramet.UnavailableError, match="didn't tell its version"):
        await Firecracker(str(hangs)).version()


async def test_what_firecracker_refuses_is_said_in_its_words(
    probes: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Firecracker, "most_cpus", 64)  # else it isn't asked
    for _ in range(5):  # its API goes before it says why
        with pytest.raises(ramet.VmmError, match="number of vCPUs"):
            await probes.run("probe", driver="firecracker", memory="64M", cpus=40)
    assert await probes.list(everything=True) == []


_DEVICES = "mknod -m 666 null c 1 3 && mknod -m 666 zero c 1 5 && mknod -m 666 urandom c 1 9"


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        ("true", "/dev/kvm"),
        ("mknod -m 666 kvm c 1 3", "KVM"),
    ],
    ids=["missing", "something else"],
)
async def test_no_kvm(prepare: str, words: str, homes: Path, tmp_path: Path) -> None:
    """In a mount namespace of its own, with a /dev that lacks it."""
    if os.geteuid() != 0:
        pytest.skip("only root can have a /dev of its own")
    script = f'mount -t tmpfs none /dev && cd /dev && {_DEVICES} && {prepare} && cd / && exec "$@"'
    run = ["run", "probe", "--driver", "firecracker", "--json"]
    done = await anyio.run_process(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "ramet.cli.main", *run],
        check=False,
        env=os.environ | {"RAMET_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 5, done.stderr.decode()
    error = msgspec.json.decode(done.stdout)["error"]
    assert error["code"] == "unavailable"
    assert words in error["message"]
    assert "firecracker needs KVM" in error["message"]
    assert list((tmp_path / "home" / "instances").iterdir()) == []


_STOPPING = """#!/bin/sh
# The third one that is started stops before it listens.
case "$*" in *--version*) exec {real} "$@" ;; esac
if ! mkdir {counter}/1 2>/dev/null && ! mkdir {counter}/2 2>/dev/null && mkdir {counter}/3 2>/dev/null; then
    kill -STOP $$
fi
exec {real} "$@"
"""


_PANICKING = """#!/bin/sh
# The first {times} end as one does whose API's thread waits for a machine that can't be made.
case "$*" in *--version*) exec {real} "$@" ;; esac
mkdir {counter}/$$
if [ "$(ls {counter} | wc -l)" -le {times} ]; then
    echo "2030-01-01T00:00:00 [1:fc_api] Firecracker panicked at api_server/mod.rs:174:63:" >> vmm.log
    echo "VMM disconnected: RecvError" >> vmm.log
    exit 1
fi
exec {real} "$@"
"""


@pytest.mark.parametrize(("times", "starts"), [(1, 2), (9, 3)], ids=["once", "always"])
async def test_a_boot_that_lost_its_reason_is_tried_again_but_not_for_ever(
    times: int, starts: int, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper, counter = tmp_path / "firecracker", tmp_path / "started"
    counter.mkdir()
    wrapper.write_text(_PANICKING.format(real=Firecracker().program(), counter=counter, times=times))
    wrapper.chmod(0o755)
    monkeypatch.setenv("RAMET_FIRECRACKER", str(wrapper))
    async with ramet.Host(home) as host:
        if times < starts:
            assert (await (await host.run("probe", driver="firecracker", memory="64M")).info()).pid
        else:
            with pytest.raises(ramet.VmmError, match="VMM disconnected"):
                await host.run("probe", driver="firecracker", memory="64M")
            assert await host.list(everything=True) == []
    assert len(list(counter.iterdir())) == starts


async def test_an_api_that_does_not_answer(
    home: Path, make_template: MakeTemplate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = await make_template("128M")
    await template.detach()
    wrapper, counter = tmp_path / "firecracker", tmp_path / "started"
    counter.mkdir()
    wrapper.write_text(_STOPPING.format(real=Firecracker().program(), counter=counter))
    wrapper.chmod(0o755)
    monkeypatch.setenv("RAMET_FIRECRACKER", str(wrapper))
    monkeypatch.setattr("ramet.drivers.firecracker.vmm._START_LIMIT_S", 2.0)
    async with ramet.Host(home) as host:
        base = await host.get(template.id)
        results: list[object] = [*await base.fork(4, return_exceptions=True)]
        failures = [result for result in results if isinstance(result, Exception)]
        assert [type(error) for error in failures] == [ramet.VmmError]
        assert "didn't start" in str(failures[0])
        living = [result for result in results if isinstance(result, ramet.VM)]
        assert [(await vm.exec("peek", hex(DATA_ADDRESS))).ok for vm in living] == [True] * 3
        assert len(living_in(home)) == 3
        # A VMM that stops later, while it is asked.
        os.kill(living[0].receipt.pid, 19)
        monkeypatch.setattr("ramet.drivers.http_api.ANSWER_LIMIT_S", 1.0)
        with pytest.raises(ramet.VmmTimeoutError, match="didn't answer within 1 s"):
            await living[0].pause()
        await base.remove()


async def test_a_vmm_killed_as_its_guest_goes_on(
    make_template: MakeTemplate, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = await make_template("128M")
    lose_the_second_vmm(monkeypatch, FirecrackerVmm)
    results: list[object] = [*await template.fork(4, return_exceptions=True)]
    failures = [result for result in results if isinstance(result, Exception)]
    assert [type(error) for error in failures] == [ramet.VmmError]
    living = [result for result in results if isinstance(result, ramet.VM)]
    assert [(await vm.exec("peek", hex(DATA_ADDRESS))).ok for vm in living] == [True] * 3
    assert len(living_in(home)) == 3
    assert len(list((home / "instances").iterdir())) == 4


@pytest.mark.proves("I4")
async def test_a_driver_that_does_not_map_privately_gets_copies(
    make_template: MakeTemplate, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is the ability, not the name: the same VMM without the ability."""
    template = await make_template("128M")
    without = Firecracker()
    await without.version()
    abilities = without.abilities - {Ability.MAPS_PRIVATELY}
    monkeypatch.setattr(Firecracker, "abilities", property(lambda _: abilities))
    (fork,) = await template.fork(1)
    memory = fork.receipt.memory
    assert memory.mode in ("copied", "reflinked")
    assert "firecracker doesn't map memory privately" in memory.reason
    assert memory.inode != (template.directory / MEM_FILE).stat().st_ino
    assert (await fork.exec("peek", hex(DATA_ADDRESS), check=True)).text.split() == [f"{0x1111:016x}"]
    await refused(template, home, ramet.NotSharedError, "copied", require_shared=True)


@pytest.mark.proves("I4")
async def test_a_raw_disk_is_not_shared_and_says_so(make_template: MakeTemplate, home: Path) -> None:
    """`--require-shared` speaks of disks, too (I4)."""
    template = await make_template("128M")
    await refused(template, home, ramet.NotSharedError, "its disk `disk` would be", require_shared=True)


def test_words_for_guests_that_a_driver_cannot_run(home: Path) -> None:
    words = [sys.executable, "-m", "ramet.cli.main", "run", "probe", "--driver", "qemu"]
    done = subprocess.run(
        words,
        env=os.environ | {"RAMET_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 5
    assert "qemu boots no bare-metal guests" in done.stderr
