"""Many ramet processes on one home, doing things that exclude each other."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import pytest

from ramet.paths import VMM_LOG
from tests.conftest import SHORTLY, living_in
from tests.support.owners import kill_both
from tests.support.shell import COMMAND, LIMIT_S, Shell, run_command, wait_until

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


Ended: TypeAlias = tuple[int, str, str]
"""Exit code, standard output and standard error."""


def ended(child: subprocess.Popen[bytes]) -> Ended:
    out, err = child.communicate(timeout=LIMIT_S)
    return checked(child.returncode, out, err)


def checked(code: int, out: bytes, err: bytes) -> Ended:
    assert b"Traceback" not in err, err
    assert b"internal error" not in err, err
    return code, out.decode(), err.decode()


def at_once(shell: Shell, commands: Sequence[Sequence[str]]) -> list[Ended]:
    """Run each command in a process of its own, all at the same time. Their imports are done."""

    def run(words: Sequence[str]) -> Ended:
        done = run_command(words, shell.environment)
        return checked(done.returncode, done.stdout, done.stderr)

    with ThreadPoolExecutor(len(commands)) as threads:
        return list(threads.map(run, commands))


def test_twenty_processes_fork_list_exec_and_remove_one_template(shell: Shell) -> None:
    shell("fork", "--name", "seed", "warm")
    shell("template", "seed")
    shell("fork", "--name", "busy", "seed")
    commands = [
        *[["fork", "--json", "seed"]] * 8,
        *[["exec", "busy", "md5sum", "/tmp/data"]] * 4,
        *[["ps", "-a", "--json"]] * 3,
        ["tree", "--json"],
        ["inspect", "--json", "seed"],
        ["rm", "-f", "seed"],
        ["rm", "-f", "seed"],
        ["rm", "-f", "busy"],
    ]
    made = []
    for words, (code, out, err) in zip(commands, at_once(shell, commands), strict=True):
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
    answers = at_once(shell, [["run", "--name", "only", "builtin"]] * 4)
    assert sorted(code for code, _, _ in answers) == [0, 7, 7, 7]
    shell("exec", "only", "true")
    shell("rm", "-f", "only")


def test_a_rebooted_fork_is_started_by_one_of_many(shell: Shell) -> None:
    """A restored guest that reboots takes its VMM with it; four commands find it so at once."""
    fork = shell.json("fork", "--name", "again", "--json", "warm")["forks"][0]
    shell("exec", "-d", "again", "--", *SHORTLY, "reboot")
    wait_until(lambda: living_in(shell.home) == [])
    answers = at_once(shell, [["exec", "again", "cat", "/proc/sys/kernel/random/boot_id"]] * 4)
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
    for code_of_child, _, err in at_once(shell, [["ps", "-a", "--json"]] * 5):
        assert (code_of_child, err) == (0, "")
    assert [instance["name"] for instance in shell.json("ps", "-a", "--json")] == ["warm"]


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.deep)])
def test_interrupted_forks_leave_nothing(shell: Shell, count: int) -> None:
    """SIGINT at so many moments between start and end of `fork -n 4`, others in each run."""
    longest_s = 1.2
    for number in range(count):
        moment_s = random.uniform(number, number + 1) / count * longest_s
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
                child.communicate(timeout=moment_s)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGINT)
            code, _, err = ended(child)
        finally:
            child.kill()
        assert code in {0, 130}, (moment_s, err)
        if code != 130:
            shell("rm", "-f", *(f"cut-{fork}" for fork in range(1, 5)))
        assert living_in(shell.home) == [], moment_s
        assert len(list((shell.home / "instances").iterdir())) == 1


def test_what_is_done_is_not_interrupted_any_more(shell: Shell) -> None:
    """Ctrl-C again and again from when the fork has been said to when the process has ended."""
    for _ in range(2):
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
