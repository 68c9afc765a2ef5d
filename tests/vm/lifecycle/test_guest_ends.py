"""How guests end, and what is said of it: a crash is never taken for a reboot."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

import ramet
from ramet.drivers.endings import announced_power_off, announced_reboot
from ramet.drivers.qemu import monitor as qemu_monitor
from ramet.engine import limits
from ramet.engine.exec import commands
from ramet.engine.vmm.console import reasons
from ramet.model import protocols
from tests.conftest import SHORTLY
from tests.support.guests import pid_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

_BY_HAND = (*SHORTLY, "sh", "-c")


async def ended(vm: protocols.VM) -> tuple[str, str]:
    with anyio.fail_after(60):
        await vm.wait()
    info = await vm.info()
    return info.state, str(info.reason)


async def reset(vm: ramet.VM) -> None:
    """As a triple fault does: without a word of the guest's."""
    async with qemu_monitor.monitor(vm.directory, who=vm.name) as monitor:
        await monitor.execute("system_reset")


@pytest.mark.vm
@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("echo c > /proc/sysrq-trigger", "sysrq triggered crash"),
        ("mount -t tmpfs -o size=200% x /mnt; dd if=/dev/zero of=/mnt/all bs=64k; sleep 9 & wait", "memory"),
    ],
    ids=["sysrq", "memory"],
)
async def test_a_crash_is_a_failure_with_its_reason(warm: protocols.VM, deed: str, said: str) -> None:
    async with warm.fork(1) as (vm,):
        await vm.spawn(*_BY_HAND, deed)
        if said == "memory":  # what is left is taken by the next that asks
            with anyio.fail_after(60):
                while (await vm.info()).state == "running":
                    try:
                        await vm.exec("true", timeout=5)
                    except ramet.RametError:
                        continue
        state, reason = await ended(vm)
        assert (state, said in reason) == ("failed", True), reason
        assert "Kernel panic" in reason
        with pytest.raises(ramet.WrongStateError, match="failed"):
            await vm.exec("true")
        assert (await vm.info()).state == "failed"


@pytest.mark.vm
@pytest.mark.parametrize(
    "deed",
    [
        "reboot",  # the agent's word; the kernel's are read in `test_the_last_word_decides`
        pytest.param("reboot -f", marks=pytest.mark.deep),
        pytest.param("echo b > /proc/sysrq-trigger", marks=pytest.mark.deep),
    ],
)
async def test_a_reboot_that_was_asked_for_is_one(warm: ramet.VM, deed: str) -> None:
    async with warm.fork(1) as (vm,):
        pid = await pid_of(vm)
        await vm.spawn(*_BY_HAND, deed)
        with anyio.fail_after(120):
            while True:
                info = await vm.info()
                assert info.state != "failed", info.reason
                if info.state == "running" and info.pid not in (None, pid):
                    break
                await anyio.sleep(0.1)
        # The word of the first is still there when the second crashes without one.
        await reset(vm)
        state, reason = await ended(vm)
        assert (state, "hadn't asked" in reason) == ("failed", True), reason


@pytest.mark.vm
async def test_full_filesystems_in_memory_leave_room_for_commands(host: protocols.Host) -> None:
    vm = await host.run(memory="96M")
    boot_id = (await vm.exec("cat", "/proc/sys/kernel/random/boot_id")).text
    fill = "for d in /tmp /dev/shm /run / /dev; do dd if=/dev/zero of=$d/fill bs=64k; done 2> /dev/null"
    many = "for d in /tmp /run; do i=0; while true > $d/f$i; do i=$((i+1)); done; done 2> /dev/null"
    await vm.exec("sh", "-c", f"{fill}; {many}", timeout=120)
    for _ in range(3):
        assert (await vm.exec("sh", "-c", "echo $(ls / | wc -l) > /dev/null; echo fine")).text == "fine\n"
    (fork,) = await vm.fork(1)
    assert (await fork.exec("hostname")).text.strip() == fork.name
    assert (await vm.exec("cat", "/proc/sys/kernel/random/boot_id")).text == boot_id
    scores = await vm.exec("cat", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj")
    assert scores.text.split() == ["-1000", "0"]


@pytest.mark.vm
async def test_a_guest_that_halted_is_quoted(warm: protocols.VM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PORT_S", 1.0)
    monkeypatch.setattr(commands, "BACKSTOP_S", 0.5)
    async with warm.fork(1) as (vm,):
        await vm.spawn(*SHORTLY, "halt", "-f")
        with anyio.fail_after(60):
            while b"System halted" not in await vm.logs():
                await anyio.sleep(0.1)
        with pytest.raises(ramet.GuestTimeoutError, match="System halted"):
            await vm.exec("true", timeout=1)


# --- what is read, without a guest -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("console", "start", "is_reboot"),
    [
        (b"[    1.0] reboot: Restarting system\r\n", 0, True),
        (b"[    1.0] reboot: Restarting system with command 'x'\n\n", 0, True),
        (b"half a line[    1.0] reboot: Restarting system\n[    1.1] reboot: machine restart\n", 0, True),
        (b"ramet: reboot\n", 0, True),
        (b"a program: ramet: reboot later\n", 0, False),
        (b"", 0, False),
        (b"[    1.0] Kernel panic - not syncing: x\n[    1.1] Rebooting in 1 seconds..\n", 0, False),
        (b"[ 1.0] reboot: Restarting system\n[ 1.1] Kernel panic - not syncing: x\n", 0, False),
        (b"[    1.0] reboot: Restarting system\n", 36, False),
        (b"[    1.0] reboot: Restarting system\nready\n[    9.0] reboot: Restarting system\n", 36, True),
    ],
)
def test_the_last_word_decides(tmp_path: Path, console: bytes, start: int, is_reboot: bool) -> None:
    (tmp_path / "console.log").write_bytes(console)
    assert announced_reboot(tmp_path, start) is is_reboot


def test_a_power_off_by_reset_is_told(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_bytes(b"x\nramet: power off\n[    1.0] reboot: Restarting system\n")
    assert announced_power_off(tmp_path, 0)
    assert not announced_power_off(tmp_path, 40)


def test_the_lines_that_say_why_are_chosen() -> None:
    panic = "Kernel panic - not syncing: System is deadlocked on memory"
    killed = "Out of memory: Killed process 117 (dd)"
    noise = [f"R{number}: 0000000000000000" for number in range(8, 16)]
    lines = [
        "ready",
        killed,
        "Call Trace:",
        panic,
        *noise,
        "Kernel Offset: disabled",
        f"---[ end {panic} ]---",
    ]
    assert reasons(lines) == [killed, panic]
    assert reasons([*(f"BUG: number {n}" for n in range(9)), panic]) == [
        "BUG: number 7",
        "BUG: number 8",
        panic,
    ]
    assert reasons(["login:", "ramet: power off"]) == []
    assert reasons(["ramet: disk can't be mounted at /data: no"]) == [
        "ramet: disk can't be mounted at /data: no"
    ]
