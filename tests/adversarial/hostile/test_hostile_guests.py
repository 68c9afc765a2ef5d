"""Guests whose root is an enemy (I8), in real VMs: each hurts only itself.

Throughout, a sibling made before answers, another is made meanwhile, this process and the instance's
directory stay small, and removing the instance by force works.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.model.schema import ForkFailure, ForkReport, Receipt
from ramet.units import MIB

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(170)]

_RSS_GROWTH_BYTES = 96 * MIB
_LOGS_BYTES = 2 * 16 * MIB  # of the console and of the VMM; what guest RAM takes on disk is the parts'
_ANSWER_S = 60


async def arm(vm: ramet.VM, evil: bytes) -> None:
    """Put the program into the guest."""
    await vm.exec("sh", "-c", "cat > /tmp/evil; chmod 755 /tmp/evil", stdin=evil, check=True)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def disk_bytes(directory: Path) -> int:
    """What the instance alone has on the disk: parts shared with others have more than one link."""
    stats = [entry.stat() for entry in directory.iterdir() if entry.is_file()]
    return sum(facts.st_blocks * 512 for facts in stats if facts.st_nlink == 1)


@asynccontextmanager
async def an_enemy_and_its_siblings(warm: ramet.VM, evil: bytes) -> AsyncIterator[tuple[ramet.VM, ramet.VM]]:
    """The enemy and a sibling of it. At the end of the block the enemy is at its worst, and everybody else is
    asked how they are.
    """
    before = resident_bytes()
    async with warm.fork(2) as (enemy, sibling):
        await arm(enemy, evil)
        yield enemy, sibling
        with anyio.fail_after(_ANSWER_S):
            assert (await sibling.exec("echo", "unharmed")).text == "unharmed\n"
            async with warm.fork(1) as (newcomer,):
                assert (await newcomer.exec("cat", "/proc/sys/kernel/hostname")).text.strip() == newcomer.name
            assert (await sibling.exec("echo", "unharmed")).text == "unharmed\n"
            assert resident_bytes() - before < _RSS_GROWTH_BYTES
            assert disk_bytes(enemy.directory) < _LOGS_BYTES
            await enemy.remove(force=True)
        assert not enemy.directory.exists()


async def bother(enemy: ramet.VM) -> str:
    """Use it as if nothing was wrong: an answer or one of ramet's own errors, within the limits."""
    await anyio.sleep(0.5)  # there is no event for it: a guest under attack doesn't tell
    with anyio.fail_after(_ANSWER_S):
        try:
            await enemy.exec("true", timeout=1)
        except ramet.RametError as error:
            return error.code
    return "answered"


@pytest.mark.proves("I8")
@pytest.mark.parametrize(
    "deed",
    [
        "garbage",
        "serve mute",
        "serve breach",
        *(pytest.param(deed, marks=pytest.mark.deep) for deed in ("flood", "eat", "serve flood")),
    ],
)
async def test_who_turns_on_its_agent_hurts_only_itself(
    warm: ramet.VM, evil: bytes, deed: str, short_limits: float
) -> None:
    async with an_enemy_and_its_siblings(warm, evil) as (enemy, _sibling):
        await enemy.spawn("/tmp/evil", *deed.split())
        outcome = await bother(enemy)
        assert b"evil failed" not in await enemy.logs()
        # Noise between its frames is what the agent's protocol stands; who answers in its place is found out.
        assert (outcome == "answered") <= (not deed.startswith("serve"))


@pytest.mark.proves("I8")
@pytest.mark.parametrize(
    "deed",
    [
        pytest.param("exec yes > /dev/console", id="console"),
        pytest.param(
            "mount -o remount,size=200% /dev/shm; exec dd if=/dev/zero of=/dev/shm/all bs=1M", id="memory"
        ),
        pytest.param(
            "for i in 1 2 3; do nice -n -20 sh -c 'while :; do :; done' & done; wait",
            id="priority",
            marks=pytest.mark.deep,
        ),
        pytest.param("bomb() { bomb | bomb & }; bomb", id="forks"),
        pytest.param(
            "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger",
            id="panic",
            marks=pytest.mark.deep,
        ),
    ],
)
async def test_who_turns_on_its_kernel_hurts_only_itself(
    warm: ramet.VM, evil: bytes, deed: str, short_limits: float
) -> None:
    async with an_enemy_and_its_siblings(warm, evil) as (enemy, _sibling):
        await enemy.spawn("sh", "-c", deed, console=False)
        await bother(enemy)


@pytest.mark.timing
async def test_going_away_during_a_command_is_an_error_of_that_command(warm: ramet.VM, evil: bytes) -> None:
    async with an_enemy_and_its_siblings(warm, evil) as (enemy, sibling):
        await enemy.spawn("sh", "-c", "until [ -e /tmp/begun ]; do sleep 0.1; done; exec poweroff -f")
        with anyio.fail_after(_ANSWER_S), pytest.raises(ramet.RametError, match=r"VMM ended|connection"):
            await enemy.exec("sh", "-c", "echo > /tmp/begun; sleep 300")
        assert (await sibling.exec("true")).ok
        with anyio.fail_after(_ANSWER_S):
            await enemy.wait()
        assert (await enemy.info()).state == "stopped"


@pytest.mark.proves("I5")
async def test_forks_of_guests_that_never_answer_or_lie_fail_each_for_itself(
    warm: ramet.VM, evil: bytes, short_limits: float
) -> None:
    """And a healthy template's succeed at the same time."""
    deeds = {
        "frozen": "exec /tmp/evil freeze",
        "unbound": "echo virtio0 > /sys/bus/virtio/drivers/virtio_console/unbind",
        "mute": "exec /tmp/evil serve mute",
        "liar": "exec /tmp/evil serve liar",
    }
    reports: dict[str, ForkReport] = {}

    async def fork(name: str, template: ramet.VM) -> None:
        reports[name] = await template.fork_report(2, name=name)

    async with warm.fork(len(deeds)) as sources, anyio.create_task_group() as tasks:
        for source, deed in zip(sources, deeds.values(), strict=True):
            await arm(source, evil)
            await source.spawn("sh", "-c", f"sleep 0.2; {deed}")
        await anyio.sleep(1)  # nobody is left in these guests who could say that it has happened
        for name, source in zip(deeds, sources, strict=True):
            tasks.start_soon(fork, name, await source.template())
        tasks.start_soon(fork, "good", warm)
    for name, report in reports.items():
        assert len(report.forks) == 2
        for each in report.forks:
            if name == "good":
                assert isinstance(each, Receipt)
                continue
            assert isinstance(each, ForkFailure)
            code, words = each.error.code, each.error.message
            if name == "liar":
                assert (code, "its identity: hostname wrong" in words) == ("guest_failed", True)
            else:
                assert (code, f"within {short_limits:g} s" in words) == ("guest_timeout", True)
