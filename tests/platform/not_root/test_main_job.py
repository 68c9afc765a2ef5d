"""The whole main job as an ordinary user, by command line and from Python, in that user's own directories."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import living_in
from tests.platform.not_root.conftest import Account

pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.timeout(300)]

FEW_FILES, MANY_FORKS = 1024, 64


@pytest.fixture(scope="module")
def template(account: Account) -> dict[str, Any]:
    """`base`: booted by one process, warmed by a second and made a template by a third."""
    done = account.run(account.python, "-m", "ramet.cli.main", "run", "-d", "--name", "base", "builtin")
    if done.returncode == 5:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    account.ramet("exec", "base", "--", "sh", "-c", "echo hot > /run/cache")
    made: dict[str, Any] = account.json("template", "base")
    return made


def enforced(account: Account) -> bool:
    """Whether this machine's QEMU opens the mem-file read-only."""
    checks = {check["name"]: check for check in account.json("doctor")["checks"]}
    return checks["immutability"]["ok"] is True


def how_opened(pid: int, inode: int) -> set[int]:
    """With which access mode of open(2) the process has the file open."""
    modes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if fd.stat().st_ino == inode:
            info = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text()
            (flags,) = re.findall(r"^flags:\s+(\d+)$", info, re.MULTILINE)
            modes.add(int(flags, 8) & os.O_ACCMODE)
    return modes


@pytest.mark.proves("I9")
def test_everything_lies_in_the_users_own_directory(account: Account, template: dict[str, Any]) -> None:
    directory = Path(template["directory"])
    assert directory.parent == account.data / "instances"
    for place in (account.data, account.data / "instances", directory):
        assert (place.stat().st_uid, stat.S_IMODE(place.stat().st_mode)) == (account.uid, 0o700)
    assert account.uid != 0
    # The image's files are 0444 and this user's own: protected_hardlinks lets their owner link them.
    assert (directory / "kernel").stat().st_nlink == 2


def test_the_mem_file_can_be_opened_by_this_vmm(account: Account, template: dict[str, Any]) -> None:
    directory = Path(template["directory"])
    mode = 0o444 if enforced(account) else 0o600
    assert stat.S_IMODE((directory / "mem").stat().st_mode) == mode
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["parts"]["mem"]["facts"]["mode"] == mode
    assert stat.S_IMODE((directory / "vmstate").stat().st_mode) == 0o444


def test_forks_share_are_isolated_and_can_be_forked_themselves(
    account: Account, template: dict[str, Any]
) -> None:
    mem = Path(template["directory"], "mem").stat()
    receipts = account.json("fork", "-n", "3", "--require-shared", "base")["forks"]
    assert [receipt["memory"]["mode"] for receipt in receipts] == ["shared"] * 3
    assert {receipt["memory"]["inode"] for receipt in receipts} == {mem.st_ino}
    said = receipts[0]["memory"]["immutability"]
    assert said.startswith("enforced" if enforced(account) else "not enforced by the kernel: ")
    access = os.O_RDONLY if enforced(account) else os.O_RDWR
    assert [how_opened(receipt["pid"], mem.st_ino) for receipt in receipts] == [{access}] * 3
    first, second, third = (receipt["name"] for receipt in receipts)
    assert [account.ramet("exec", name, "--", "cat", "/run/cache") for name in (first, second)] == [
        "hot\n"
    ] * 2
    account.ramet("exec", first, "--", "sh", "-c", "echo own > /run/cache")
    assert account.ramet("exec", second, "--", "cat", "/run/cache") == "hot\n"

    assert account.json("template", first)["state"] == "template"
    [child] = account.json("fork", "--require-shared", "--name", "grandchild", first)["forks"]
    # What the first had changed, over the same inode.
    assert child["memory"]["mode"] == "delta"
    assert child["memory"]["inode"] == mem.st_ino
    assert account.ramet("exec", "grandchild", "--", "cat", "/run/cache") == "own\n"

    assert account.json("stop", second)["state"] == "stopped"
    assert account.json("start", second)["state"] == "running"
    account.ramet("exec", second, "--", "test", "!", "-e", "/run/cache")
    account.ramet("logs", third)
    account.ramet("rm", "-f", first, second, third, "grandchild")
    assert [instance["name"] for instance in account.json("ps", "-a")] == ["base"]
    assert Path(template["directory"], "mem").stat().st_nlink == 1
    assert living_in(account.data) == []


def test_many_forks_with_the_usual_limit_on_open_files(account: Account, template: dict[str, Any]) -> None:
    words = [account.python, "-m", "ramet.cli.main", "fork", "-n", str(MANY_FORKS), "--name", "many"]
    done = account.run(
        "prlimit", f"--nofile={FEW_FILES}:{FEW_FILES}", *words, "--require-shared", "--json", "base"
    )
    assert done.returncode == 0, done.stderr
    forks = json.loads(done.stdout)["forks"]
    try:
        assert [vm["memory"]["mode"] for vm in forks] == ["shared"] * MANY_FORKS
        assert Path(template["directory"], "mem").stat().st_nlink == MANY_FORKS + 1
    finally:
        account.ramet("rm", "-f", *(vm["id"] for vm in forks))


def test_the_python_api(account: Account, template: dict[str, Any]) -> None:
    said = account.script(
        """if True:
        import anyio, ramet

        async def main():
            async with ramet.Host() as host:
                vm = await host.run("builtin")
                await vm.exec("sh", "-c", "echo warm > /run/cache", check=True)
                base = await vm.template()
                async with base.fork(2, require_shared=True) as forks:
                    print([r.text.strip() for r in await forks.exec("cat", "/run/cache")])

        anyio.run(main)
        """
    )
    assert said.strip() == "['warm', 'warm']"
    assert [instance["name"] for instance in account.json("ps", "-a")] == ["base"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming two users needs root")
def test_another_users_home_is_refused_by_name(
    account: Account, template: dict[str, Any], home: Path
) -> None:
    home.chmod(0o700)
    refused = account.run(account.python, "-m", "ramet.cli.main", "ps", RAMET_HOME=str(home))
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    assert str(home) in refused.stderr


@pytest.mark.skipif(
    os.geteuid() != 0, reason="a program that its user may run and not read is root's to make"
)
def test_memory_that_may_not_be_read_is_an_error_with_a_next_step(account: Account) -> None:
    """What Yama does, by other means: the kernel lets nobody trace a program that its user can't read
    (ptrace(2), "dumpable").
    """
    binary = shutil.which("qemu-system-x86_64")
    if binary is None:
        pytest.skip("there is no QEMU")
    unreadable = account.home / "closed" / "bin" / "qemu"
    unreadable.parent.mkdir(parents=True)
    shutil.copy(binary, unreadable)
    unreadable.chmod(0o711)
    for name in ("share", "lib"):  # QEMU looks for its firmware beside itself
        (account.home / "closed" / name).symlink_to(f"/usr/{name}")
    qemu = str(unreadable)
    account.ramet("run", "-d", "--name", "closed", "builtin", RAMET_QEMU=qemu)
    try:
        for words in (("template",), ("standby",), ("fork",), ("snapshot", "create")):
            answer = account.json(*words, "closed", code=5, RAMET_QEMU=qemu)["error"]
            assert answer["code"] == "unavailable", words
            assert "kernel.yama.ptrace_scope=0" in answer["hint"]
            assert account.json("inspect", "closed", RAMET_QEMU=qemu)["state"] == "running"
            assert account.ramet("exec", "closed", "--", "echo", "alive", RAMET_QEMU=qemu) == "alive\n"
        assert account.json("snapshot", "ls", RAMET_QEMU=qemu) == []
        names = {instance["name"] for instance in account.json("ps", "-a", RAMET_QEMU=qemu)}
        assert names - {"base"} == {"closed"}
    finally:
        account.ramet("rm", "-f", "closed", RAMET_QEMU=qemu)
