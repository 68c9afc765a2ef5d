"""What was made by one release of QEMU, on another: refused in words that name both, and nothing is lost."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import ramet
from ramet.paths import MEM_FILE
from tests.conftest import assert_nothing_left
from tests.platform.not_root.conftest import Account, install
from tests.platform.qemu_releases.conftest import Get
from tests.platform.qemu_releases.inner import Ramet, run_tests
from tests.platform.qemu_releases.packages import SUITES, Unpacked
from tests.support.shell import wait_until

pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.anyio, pytest.mark.timeout(600)]

NAMES = [suite.name for suite in SUITES]
OLDEST, NEWEST = NAMES[0], NAMES[-1]
STATE = "hot"


@pytest.fixture(scope="module")
def made(release: Unpacked, homes: Path) -> Iterator[Ramet]:
    """A home of that release: `living` with a data disk and the snapshots `base` and `packed`, `warm` a
    template, `asleep` in standby.
    """
    home = Path(tempfile.mkdtemp(dir=homes, prefix="qemu-"))
    own = Ramet(home, release)
    try:
        own("run", "-d", "--name", "living", "--memory", "128M", "--disk", "64M:/data", "builtin")
        own(
            "exec", "living", "--", "sh", "-c", f"echo {STATE} > /run/state; echo {STATE} > /data/state; sync"
        )
        own("snapshot", "create", "living", "--name", "base")
        own("snapshot", "create", "living", "--name", "packed")
        own("snapshot", "compress", "living/packed")
        for name in ("warm", "asleep"):
            own("fork", "--name", name, "living/base")
        own("template", "warm")
        own("standby", "asleep")
        yield own
    finally:
        own("rm", "-f", *own("ps", "-aq").split())
        for snapshot in own.json("snapshot", "ls"):
            own("snapshot", "rm", snapshot["id"])
    assert_nothing_left(home)


def standing(here: Ramet) -> list[tuple[str, str, int | None]]:
    """What there is, and with which VMM."""
    return sorted(
        (instance["name"], instance["state"], instance["pid"]) for instance in here.json("ps", "-a")
    )


def refused(here: Ramet, *words: str, versions: Sequence[str]) -> None:
    """One error, that names both versions and the next step."""
    error = here.json(*words, code=5)["error"]
    assert error["code"] == "unavailable", (words, error)
    for version in versions:
        assert f"{version}." in error["message"], (words, error)
    assert "set RAMET_QEMU to " in error["hint"], (words, error)
    assert error["message"].count("\n") == 0


@pytest.mark.parametrize("other", NAMES)
def test_what_another_release_saved_is_refused_and_whole(made: Ramet, other: str, get: Get) -> None:
    if other == made.release.name:
        pytest.skip("its own")
    home = Path(made.json("inspect", "living")["directory"]).parent.parent
    here = Ramet(home, get(other))
    before = standing(made)
    both = (made.release.name, other)
    for words in (
        ("fork", "warm"),
        ("fork", "-n", "2", "asleep"),
        ("fork", "living/base"),
        ("fork", "living/packed"),
        ("restore", "asleep"),
        ("rewind", "living", "base"),
        ("stop", "asleep"),
        # Its VMM is of the release that it was started with.
        ("fork", "living"),
        ("template", "living"),
        ("standby", "living"),
    ):
        refused(here, *words, versions=both)
        assert standing(made) == before, words
    # What is refused wasn't unpacked for it.
    packed = made.json("snapshot", "inspect", "living/packed")
    assert packed["compression"] == "compressed"
    assert not (home / "snapshots" / packed["id"] / MEM_FILE).exists()
    # It lives on, whatever the program is by now, and can be kept for the release that it needs.
    assert here.state("living") == STATE
    here("pause", "living")
    here("resume", "living")
    here("snapshot", "create", "living", "--name", "later")
    assert here.json("snapshot", "inspect", "living/later")["driver_version"].startswith(f"{both[0]}.")
    refused(here, "fork", "living/later", versions=both)
    made("fork", "--name", "child", "--require-shared", "living/later")
    assert made.state("child") == STATE
    made("rm", "-f", "child")
    made("snapshot", "rm", "living/later")


def test_with_its_own_release_all_of_it_goes_on(made: Ramet) -> None:
    """After it was refused by each of the others, as the file has it."""
    for source in ("warm", "living/base", "living/packed", "asleep"):
        made("fork", "--name", "child", "--require-shared", source)
        assert made.state("child") == STATE
        assert made("exec", "child", "--", "cat", "/data/state").strip() == STATE
        made("rm", "-f", "child")
    made("restore", "asleep")
    assert made.state("asleep") == STATE
    made("rewind", "living", "base")
    assert made.state("living") == STATE


@pytest.mark.parametrize("other", NAMES)
def test_an_archive_of_another_release_is_taken_and_not_forked(
    made: Ramet, other: str, get: Get, home: Path, tmp_path: Path
) -> None:
    if other == made.release.name:
        pytest.skip("its own")
    file = tmp_path / "base.ramet"
    made("snapshot", "export", "living/base", str(file))
    here = Ramet(home, get(other))
    here("snapshot", "import", str(file), "--name", "arrived")
    inspected = here.json("snapshot", "inspect", "arrived")
    assert inspected["driver_version"].startswith(f"{made.release.name}.")
    assert inspected["machine_type"] == f"pc-i440fx-{made.release.name}"
    refused(here, "fork", "arrived", versions=(made.release.name, other))
    there = Ramet(home, made.release)
    there("fork", "--name", "child", "arrived")
    assert there.state("child") == STATE
    there("rm", "-f", "child")
    there("snapshot", "rm", "arrived")


def rebooted(here: Ramet, name: str) -> Ramet:
    """After its guest has rebooted."""
    before = here.json("inspect", name)["pid"]
    here("exec", name, "--", "sh", "-c", "(sleep 0.3; reboot -f) > /dev/null 2>&1 &")
    wait_until(lambda: here.json("inspect", name)["pid"] not in (None, before), limit_s=60)
    return here


def test_a_start_takes_an_instance_to_a_newer_release_and_back(get: Get, home: Path) -> None:
    Ramet(home, get(OLDEST))(
        "run", "-d", "--name", "box", "--memory", "128M", "--disk", "64M:/data", "builtin"
    )
    for number, name in enumerate((*NAMES, *reversed(NAMES[:-1]))):
        here = Ramet(home, get(name))
        if number:
            here("start", "box")
        here("exec", "box", "--", "sh", "-c", f"echo {name} >> /data/releases; echo {STATE} > /run/state")
        here("snapshot", "create", "box", "--name", "own")
        assert here.json("snapshot", "inspect", "box/own")["machine_type"] == f"pc-i440fx-{name}"
        here("fork", "--name", "child", "box/own")
        assert here.state("child") == STATE
        here("rm", "-f", "child")
        here("snapshot", "rm", "box/own")
        if number:
            here("stop", "box")
        else:
            # As a reboot does: whoever looks next starts it cold.
            rebooted(Ramet(home, get(NEWEST)), "box")("stop", "box")
    here("start", "box")
    assert here("exec", "box", "--", "cat", "/data/releases").split() == [*NAMES, *reversed(NAMES[:-1])]
    here("rm", "-f", "box")


def relinked(program: Path, release: Unpacked) -> None:
    """As an upgrade does: the file at that path is another one, from one moment to the next."""
    new = program.with_name("new")
    new.symlink_to(release.qemu)
    new.replace(program)


async def test_a_program_upgraded_under_an_open_host(
    get: Get, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu"
    relinked(program, get(OLDEST))
    monkeypatch.setenv("RAMET_QEMU", str(program))
    async with ramet.Host(home) as host:
        old = await (await host.run("builtin", name="old", driver="qemu", memory="128M")).template()
        await (await old.fork(1))[0].remove(force=True)
        relinked(program, get(NEWEST))
        with pytest.raises(ramet.UnavailableError, match=rf"saved by qemu {OLDEST}\..* has {NEWEST}\."):
            await old.fork(1)
        new = await (await host.run("builtin", name="new", driver="qemu", memory="128M")).template()
        (fork,) = await new.fork(1)
        assert (await fork.exec("true")).exit_code == 0
        assert fork.receipt.memory.immutability == "enforced by the kernel"
        relinked(program, get(OLDEST))
        (fork,) = await old.fork(1)
        assert (await fork.exec("true")).exit_code == 0
        assert fork.receipt.memory.immutability.startswith("not enforced")


async def test_a_script_that_starts_another_program_than_it_did(
    get: Get, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is the same; the VMM says who it is."""
    target, script = tmp_path / "target", tmp_path / "qemu"
    relinked(target, get(OLDEST))
    script.write_text(f'#!/bin/sh\nexec {target} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("RAMET_QEMU", str(script))
    async with ramet.Host(home) as host:
        old = await (await host.run("builtin", name="old", driver="qemu", memory="128M")).template()
        relinked(target, get(NEWEST))
        with pytest.raises(ramet.ForkError) as caught:
            await old.fork(1)
        (error,) = caught.value.errors.values()
        assert isinstance(error, ramet.UnavailableError)
        assert f"is {NEWEST}." in error.message
        assert f"said that it is {OLDEST}." in error.message
        with pytest.raises(ramet.UnavailableError, match=rf"saved by qemu {OLDEST}\..* has {NEWEST}\."):
            await old.fork(1)
        assert [instance.name for instance in await host.list(everything=True)] == ["old"]
        relinked(target, get(OLDEST))
        # This one doesn't even understand what it is told.
        with pytest.raises(ramet.UnavailableError, match=rf"is {OLDEST}\..* said that it is {NEWEST}\."):
            await host.run("builtin", name="never", driver="qemu", memory="128M")
        assert [instance.name for instance in await host.list(everything=True)] == ["old"]
        await old.fork(1)


async def test_a_pool_makes_nothing_of_what_the_program_cannot_restore(
    get: Get, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu"
    relinked(program, get(OLDEST))
    monkeypatch.setenv("RAMET_QEMU", str(program))
    async with ramet.Host(home, warm=2) as host:
        old = await (await host.run("builtin", name="old", driver="qemu", memory="128M")).template()
        await old.fork(1)
        await host.pool(wait=120)
        (fork,) = await old.fork(1)
        assert fork.receipt.warm == "loaded"
        relinked(program, get(NEWEST))
        with pytest.raises(ramet.UnavailableError, match=rf"saved by qemu {OLDEST}\..* has {NEWEST}\."):
            await old.fork(1)
        new = await (await host.run("builtin", name="new", driver="qemu", memory="128M")).template()
        (fork,) = await new.fork(1)
        assert (await fork.exec("true")).exit_code == 0
        # Those of the old release are of no use to anybody here.
        assert {entry.source_name for entry in (await host.pool(wait=120)).entries} == {"new"}
        relinked(program, get(OLDEST))
        (fork,) = await old.fork(1)
        assert (await fork.exec("true")).exit_code == 0


@pytest.mark.parametrize(("name", "tools"), [(OLDEST, NEWEST), (NEWEST, OLDEST)])
def test_qemu_img_of_another_release(name: str, tools: str, get: Get) -> None:
    """Chains of disks that it has shortened are read by the VMM."""
    found = run_tests(get(name), "tests/vm/disks/test_long_chains.py", tools=get(tools))
    assert (found.failed, found.skipped) == ({}, {}), found.output
    assert found.passed, found.output


@pytest.fixture
def nobody() -> Iterator[Account]:
    """An ordinary user who has no account to be made, with a home of the test's own."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user wants root")
    with tempfile.TemporaryDirectory(prefix="ramet-nobody-") as directory:
        account = Account(Path(directory), pwd.getpwnam("nobody"))
        os.chown(directory, account.uid, -1)
        install(account)
        yield account
        if ids := account.ramet("ps", "-aq").split():
            account.ramet("rm", "-f", *ids)


def test_what_an_older_living_vmm_needs_is_published_so(nobody: Account, get: Get) -> None:
    """A mem-file that this user's older QEMU has to open for writing, captured when the program is newer."""
    nobody.environment["RAMET_QEMU"] = get(OLDEST).qemu
    nobody.ramet("run", "-d", "--name", "box", "--memory", "128M", "builtin")
    nobody.ramet("exec", "box", "--", "sh", "-c", f"echo {STATE} > /run/state")
    nobody.environment["RAMET_QEMU"] = get(NEWEST).qemu
    nobody.ramet("snapshot", "create", "box", "--name", "kept")
    nobody.environment["RAMET_QEMU"] = get(OLDEST).qemu
    nobody.ramet("fork", "--name", "child", "box/kept")
    assert nobody.ramet("exec", "child", "--", "cat", "/run/state").strip() == STATE
    nobody.ramet("snapshot", "rm", "box/kept")
