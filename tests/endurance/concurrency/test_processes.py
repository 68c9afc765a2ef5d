"""Many ramet processes on one home, doing things that exclude each other."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ramet.paths import VMM_LOG
from tests.conftest import SHORTLY, living_in
from tests.support.owners import kill_both
from tests.support.shell import COMMAND, LIMIT_S, Shell, wait_until

pytestmark = pytest.mark.vm


@pytest.fixture
def shell(warm_home: Path) -> Iterator[Shell]:
    """`ramet` on the warm home. Only the template may be left in it, and no process."""
    opened = Shell(warm_home)
    yield opened
    opened.close()
    left = {instance["name"]: instance["directory"] for instance in opened.json("ps", "-a", "--json")}
    if others := [name for name in left if name != "warm"]:
        opened("rm", "-f", *others)
    assert others == []
    assert living_in(warm_home) == []
    assert [str(path) for path in (warm_home / "instances").iterdir()] == [left["warm"]]


def ended(child: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Exit code and what it wrote."""
    out, err = child.communicate(timeout=LIMIT_S)
    assert b"Traceback" not in err, err
    assert b"internal error" not in err, err
    return child.returncode, out.decode(), err.decode()


def test_twenty_processes_fork_list_exec_and_remove_one_template(shell: Shell) -> None:
    shell("fork", "--name", "seed", "warm")
    shell("template", "seed")
    shell("fork", "--name", "busy", "seed")
    children = [
        (words, shell.start(*words))
        for words in [
            *[["fork", "--json", "seed"]] * 8,
            *[["exec", "busy", "md5sum", "/tmp/data"]] * 4,
            *[["ps", "-a", "--json"]] * 3,
            ["tree", "--json"],
            ["inspect", "--json", "seed"],
            ["rm", "-f", "seed"],
            ["rm", "-f", "seed"],
            ["rm", "-f", "busy"],
        ]
    ]
    made = []
    for words, child in children:
        code, out, err = ended(child)
        match words:
            case ["fork", *_]:
                assert code in {0, 3}, (code, out, err)
                if code == 0:
                    made += [receipt["name"] for receipt in json.loads(out)["forks"]]
            case ["exec", *_]:
                # Found too late, or ended under the command.
                assert code in {0, 125}, (code, out, err)
            case ["ps" | "tree", *_]:
                assert code == 0, err
            case _:
                assert code in {0, 3}, (code, out, err)
    assert {instance["name"] for instance in shell.json("ps", "-a", "--json")} == {"warm", *made}
    # A fork depends on nothing of its template's (I3).
    for name in made:
        shell("exec", name, "md5sum", "/tmp/data")
    if made:
        shell("rm", "-f", *made)


def test_of_several_runs_with_one_name_one_wins(shell: Shell) -> None:
    children = [shell.start("run", "--name", "only", "builtin") for _ in range(4)]
    assert sorted(ended(child)[0] for child in children) == [0, 7, 7, 7]
    shell("exec", "only", "true")
    shell("rm", "-f", "only")


def test_a_rebooted_fork_is_started_by_one_of_many(shell: Shell) -> None:
    """A restored guest that reboots takes its VMM with it; four commands find it so at once."""
    fork = shell.json("fork", "--name", "again", "--json", "warm")["forks"][0]
    shell("exec", "-d", "again", "--", *SHORTLY, "reboot")
    wait_until(lambda: living_in(shell.home) == [])
    children = [shell.start("exec", "again", "cat", "/proc/sys/kernel/random/boot_id") for _ in range(4)]
    answers = [ended(child) for child in children]
    assert [code for code, _, _ in answers] == [0] * 4, answers
    assert len({out for _, out, _ in answers}) == 1, "all spoke to the same boot"
    assert len(living_in(shell.home)) == 1
    log = (Path(fork["directory"]) / VMM_LOG).read_text(errors="replace")
    assert log.count("ramet: started ") == 2, "once for the fork, once after the reboot"
    shell("rm", "-f", "again")


def test_all_who_come_remove_what_a_dead_process_owned(shell: Shell) -> None:
    code = (
        "import sys, anyio, ramet\n"
        "async def main():\n"
        "    async with ramet.Host() as host:\n"
        "        await (await host.get('warm')).fork(3, name='orphan')\n"
        "        print('made', flush=True)\n"
        "        await anyio.sleep_forever()\n"
        "anyio.run(main)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], env=shell.environment, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with owner.stdout as said:
        assert said.readline() == b"made\n"
        kill_both(owner)
    assert len(living_in(shell.home)) == 3
    children = [shell.start("ps", "-a", "--json") for _ in range(5)]
    for child in children:
        code_of_child, _, err = ended(child)
        assert (code_of_child, err) == (0, "")
    assert [instance["name"] for instance in shell.json("ps", "-a", "--json")] == ["warm"]


def test_interrupted_forks_leave_nothing(shell: Shell) -> None:
    """SIGINT at twenty moments between start and end of `fork -n 4`."""
    moments = random.Random(7)
    for _ in range(20):
        child = subprocess.Popen(
            [*COMMAND, "fork", "-n", "4", "--name", "cut", "warm"],
            env=shell.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            # Before the first record Python is importing, which is nothing of ours.
            wait_for_fork(shell.home, child)
            try:
                child.communicate(timeout=moments.uniform(0, 1.2))
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGINT)
            code, _, err = ended(child)
        finally:
            child.kill()
        assert code in {0, 130}, err
        if code != 130:
            shell("rm", "-f", *(f"cut-{number}" for number in range(1, 5)))
        assert living_in(shell.home) == []
        assert len(list((shell.home / "instances").iterdir())) == 1


def test_what_is_done_is_not_interrupted_any_more(shell: Shell) -> None:
    """Ctrl-C again and again from when the fork has been said to when the process has ended."""
    for _ in range(3):
        child = shell.start("fork", "--name", "late", "warm")
        assert child.stdout is not None
        assert child.stdout.read(1)
        while child.poll() is None:
            child.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.002)
        code, _, err = ended(child)
        assert code == 0, err
        shell("rm", "-f", "late")


def wait_for_fork(home: Path, child: subprocess.Popen[bytes]) -> None:
    """Until the command has made the first directory, or has ended."""
    begun: Callable[[], bool] = lambda: len(os.listdir(home / "instances")) > 1  # noqa: E731, PTH208
    wait_until(lambda: begun() or child.poll() is not None)
