"""The verbs on a real guest, through the real command."""

from __future__ import annotations

import os
import pty
import signal
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from ramet.model.schema import Inspection, Instance, LineageNode, Receipt, Timings, Usage
from tests import machines
from tests.conftest import assert_nothing_left, living_in
from tests.support.shell import Shell, interrupt, read_terminal, wait_until

pytestmark = pytest.mark.vm


Shape = TypeVar("Shape")


def parsed(data: bytes, kind: type[Shape]) -> Shape:
    """The document, of that shape and nothing more."""
    document = msgspec.json.decode(data)
    value = msgspec.convert(document, kind)
    assert msgspec.to_builtins(value) == document
    return value


class TestExec:
    def test_streams_and_code_are_the_commands_own(self, guest: Shell) -> None:
        done = guest("exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
        assert (done.stdout, done.stderr) == (b"out\n", b"err\n")

    def test_everything_after_the_reference_is_the_command(self, guest: Shell) -> None:
        assert guest("exec", "box", "echo", "--json", "-d", "--", "x").stdout == b"--json -d -- x\n"

    def test_signals_are_128_and_more(self, guest: Shell) -> None:
        guest("exec", "box", "sh", "-c", "kill -9 $$", code=137)

    def test_own_troubles(self, guest: Shell) -> None:
        assert b"nosuch" in guest("exec", "box", "nosuch", code=127).stderr
        guest("exec", "box", "/etc/passwd", code=126)
        assert b"1 s" in guest("exec", "--timeout", "1", "box", "sleep", "60", code=124).stderr
        guest("exec", "-d", "--timeout", "1", "box", "sleep", "60", code=125)

    def test_standard_input_is_forwarded_whole(self, guest: Shell) -> None:
        data = os.urandom(300_000)
        assert guest("exec", "box", "cat", stdin=data).stdout == data

    def test_a_file_as_standard_input(self, guest: Shell, tmp_path: Path) -> None:
        path = tmp_path / "input"
        path.write_bytes(b"x" * 100_000)
        with path.open("rb") as file:
            process = guest.start("exec", "box", "wc", "-c", stdin=file)
            said, _ = process.communicate(timeout=60)
        assert said == b"100000\n"

    def test_an_open_standard_input_keeps_nobody_waiting(self, guest: Shell) -> None:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb"):
            process = guest.start("exec", "box", "true", stdin=source)
            process.communicate(timeout=60)
        assert process.returncode == 0

    def test_options(self, guest: Shell) -> None:
        guest.environment["FROM_HERE"] = "here"
        words = [
            "--env",
            "A=b c",
            "-e",
            "FROM_HERE",
            "-e",
            "UNSET_HERE",
            "--cwd",
            "/tmp",
            "--user",
            "1000:1000",
        ]
        said = guest("exec", *words, "box", "sh", "-c", 'echo "$A $FROM_HERE $UNSET_HERE"; pwd; id -u')
        assert said.stdout == b"b c here \n/tmp\n1000\n".replace(b"b c here", b"b c here")

    def test_json(self, guest: Shell) -> None:
        document = guest.json("exec", "--json", "box", "sh", "-c", "echo a; echo b >&2; exit 3", code=3)
        assert document == {"exit_code": 3, "signal": None, "stdout": "a\n", "stderr": "b\n", "note": None}

    def test_detached(self, guest: Shell) -> None:
        pid = (
            guest("exec", "-d", "box", "sh", "-c", "echo said-by-$((40+2)); sleep 300")
            .stdout.decode()
            .strip()
        )
        wait_until(lambda: b"said-by-42" in guest("logs", "box").stdout)
        processes = guest.json("inspect", "box", "--json")["processes"]
        assert [process["detached"] for process in processes if str(process["pid"]) == pid] == [True]
        guest("exec", "box", "kill", pid)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_an_interrupted_command_is_killed_in_the_guest(
        self, guest: Shell, number: int, code: int
    ) -> None:
        process = guest.start("exec", "box", "sh", "-c", "echo begun; exec sleep 4242")
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert interrupt(process, number) == code
        assert b"sleep 4242" not in guest("exec", "box", "ps").stdout

    def test_a_reader_that_goes_ends_it(self, guest: Shell) -> None:
        process = guest.start("exec", "box", "yes")
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()
        assert b" yes" not in guest("exec", "box", "ps").stdout


class TestLooking:
    def test_ps(self, guest: Shell) -> None:
        [one] = guest.json("ps", "--json")
        instance = parsed(msgspec.json.encode(one), Instance)
        assert (instance.name, instance.state, instance.image) == ("box", "running", "builtin")
        header, row = guest("ps").stdout.decode().splitlines()
        assert header.split()[:3] == ["NAME", "ID", "STATE"]
        assert row.split()[:3] == ["box", instance.id, "running"]
        assert guest("ps", "-q").stdout.decode() == instance.id + "\n"

    def test_shapes(self, guest: Shell) -> None:
        inspection = parsed(guest("inspect", "--json", "box").stdout, Inspection)
        assert inspection.vmm_status == "running"
        assert b"vmm_status: running" in guest("inspect", "box").stdout
        parsed(guest("tree", "--json").stdout, list[LineageNode])
        parsed(guest("stats", "--json").stdout, list[Usage])
        parsed(guest("stats", "box", "--json").stdout, Usage)
        assert guest("stats").stdout.split()[:2] == [b"NAME", b"ID"]

    def test_logs_raw_in_a_pipe_and_harmless_on_a_terminal(self, guest: Shell) -> None:
        guest("exec", "box", "sh", "-c", r"printf 'mark\033[31mred\n' > /dev/console")
        wait_until(lambda: b"mark\x1b[31mred" in guest("logs", "box").stdout)
        controller, terminal = pty.openpty()
        process = guest.start("logs", "box", stdout=terminal)
        os.close(terminal)
        said = b"".join(read_terminal(controller))
        process.communicate(timeout=60)
        os.close(controller)
        assert b"markred" in said
        assert b"\x1b" not in said

    def test_following_logs_ends_when_nobody_reads(self, guest: Shell) -> None:
        process = guest.start("logs", "-f", "box")
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(timeout=30) == 141
        assert process.stderr is not None
        process.stderr.close()

    def test_the_vmm_has_a_log_too(self, guest: Shell) -> None:
        assert b"qemu" in guest("logs", "--vmm", "box").stdout
        assert set(guest.json("logs", "--json", "box")) == {"id", "text"}


class TestStates:
    def test_pause_and_resume(self, guest: Shell) -> None:
        assert guest.json("pause", "box", "--json")["state"] == "paused"
        guest("pause", "box", code=4)
        assert b"ramet resume box" in guest("exec", "box", "true", code=125).stderr
        assert guest("resume", "box").stdout == b"box\n"
        guest("exec", "box", "true")

    def test_several_at_once(self, guest: Shell) -> None:
        done = guest.json("pause", "box", "nosuch", "--json", code=6)
        assert done[0]["state"] == "paused"
        assert done[1]["error"]["code"] == "not_found"
        guest("resume", "box")
        guest("resume", "box", "nosuch", code=1)

    def test_a_running_one_is_not_removed_unasked(self, guest: Shell) -> None:
        assert b"rm -f box" in guest("rm", "box", code=4).stderr
        guest("start", "box", code=4)
        guest("restore", "box", code=4)

    def test_a_taken_name(self, guest: Shell) -> None:
        assert (
            guest.json("run", "--name", "box", "builtin", "--json", code=7)["error"]["code"] == "name_taken"
        )


def test_run_with_a_command(ramet: Shell) -> None:
    done = ramet("run", "--rm", "--label", "a=b", "builtin", "--", "cat", stdin=b"through\n")
    assert done.stdout == b"through\n"
    assert_nothing_left(ramet.home)


@pytest.mark.anyio
@pytest.mark.parametrize("image", ["probe", pytest.param("builtin", marks=pytest.mark.deep)])
async def test_run_ends_with_the_commands_code(ramet: Shell, image: str) -> None:
    driver = {"probe": "firecracker", "builtin": "qemu"}[image]
    await machines.require(driver, image)
    command = {"probe": ["peek"], "builtin": ["sh", "-c", "exit 2"]}[image]
    document = ramet.json("run", image, "--driver", driver, "--rm", "--json", "--", *command, code=2)
    assert document["command"]["exit_code"] == 2
    assert document["image"] == image
    assert_nothing_left(ramet.home)
    ramet("run", image, "--driver", driver, "--name", "stays", "--", *command, code=2)
    assert [instance["name"] for instance in ramet.json("ps", "--json")] == ["stays"]
    ramet("rm", "-f", "stays")
    ramet("run", image, "--driver", driver, "nosuch", code=127)
    assert_nothing_left(ramet.home)


def test_the_life_of_a_detached_one(ramet: Shell) -> None:
    name = ramet(
        "run", "-d", "--label", "a=b", "builtin", "--", "sh", "-c", "echo on-console; sleep 300"
    ).stdout
    name = name.strip()
    try:
        follower = ramet.start("logs", "-f", name.decode())
        assert follower.stdout is not None
        waiter = ramet.start("wait", name.decode(), "--json")
        wait_until(lambda: b"on-console" in ramet("logs", name.decode()).stdout)
        assert ramet("ps", "--filter", "a=b", "-q").stdout
        assert ramet("stop", name.decode()).stdout == name + b"\n"
        assert b"on-console" in follower.communicate(timeout=60)[0]
        assert msgspec.json.decode(waiter.communicate(timeout=60)[0])["state"] == "stopped"
        assert ramet("ps", "-q").stdout == b""
        assert ramet.json("start", name.decode(), "--json")["state"] == "running"
        ramet("exec", name.decode(), "true")
    finally:
        ramet("rm", "-f", name.decode())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_boot_leaves_nothing(ramet: Shell, number: int, code: int) -> None:
    process = ramet.start("run", "builtin", "--json")
    wait_until(lambda: bool(living_in(ramet.home)))
    process.send_signal(number)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert msgspec.json.decode(said)["error"]["code"] == "interrupted"
    assert_nothing_left(ramet.home)
    assert ramet.json("ps", "-a", "--json") == []


def test_templates_and_forks(guest: Shell) -> None:
    ramet = guest
    ramet("fork", "--name", "warm", "box")
    ramet("exec", "warm", "sh", "-c", "echo hot > /run/cache")
    try:
        assert ramet.json("template", "warm", "--json")["state"] == "template"
        ramet("fork", "-n", "2", "--require-shared", "--no-share", "warm", code=2)
        ramet("fork", "-n", "0", "warm", code=2)
        report = ramet.json("fork", "-n", "3", "--require-shared", "warm", "--json")
        assert set(report) == {"forks", "wall_ms", "saved_bytes"}
        receipts = [parsed(msgspec.json.encode(receipt), Receipt) for receipt in report["forks"]]
        assert [receipt.name for receipt in receipts] == ["warm-1", "warm-2", "warm-3"]
        assert ramet("exec", "warm-2", "cat", "/run/cache").stdout == b"hot\n"
        assert len(living_in(ramet.home)) == 1 + 3
        lines = ramet("fork", "--name", "copied", "--no-share", "warm").stdout.decode().splitlines()
        assert lines[0].split()[:4] == ["NAME", "ID", "HOSTNAME", "MEMORY"]
        assert lines[1].split()[0] == "copied"
        assert lines[1].split()[3] == "copied"
        assert lines[-1].startswith("1 fork in ")
        ramet("fork", "--name", "copied", "warm", code=7)
        ramet("fork", "-q", "--timings", "warm", code=2)
        _compare_timings(ramet)
        instance = ramet("fork", "-q", "warm").stdout.decode().strip()
        tree = ramet("tree").stdout.decode()
        assert f"{instance}  running" in tree
        assert ramet.json("keep", "warm-2", "--json")["name"] == "warm-2"
        assert {instance["name"] for instance in ramet.json("ps", "-a", "--json")} == {
            *("box", "warm", "warm-2")
        }
        removed = ramet.json("rm", "-f", "warm", "--json")["removed"]
        assert len(removed) == 1
        assert ramet("exec", "warm-2", "hostname").stdout == b"warm-2\n"
    finally:
        for instance in ramet.json("ps", "-a", "--json"):
            if instance["name"] != "box":
                ramet("rm", "-f", instance["id"])


def _compare_timings(ramet: Shell) -> None:
    """`--timings` shows what the receipts have, and of several the median and the largest."""
    lines = ramet("fork", "-n", "3", "--name", "timed", "--timings", "warm").stdout.decode().splitlines()
    assert lines[0].split()[0] == "NAME"
    assert lines[-1].startswith("3 forks in ")
    # The column of decompression is there when there was any.
    steps = [step for step in Timings.__struct_fields__ if step != "decompress"]
    assert lines[4].split() == ["TIMINGS", "IN", "MS", *map(str.upper, steps)]
    shown = {name: [float(word) for word in took] for name, *took in map(str.split, lines[5:-1])}
    assert list(shown) == ["timed-1", "timed-2", "timed-3", "(median)", "(max)"]
    forks = [shown[f"timed-{number}"] for number in (1, 2, 3)]
    for number, took in enumerate(forks, 1):
        receipt = ramet.json("inspect", f"timed-{number}", "--json")["receipt"]
        assert took == [receipt["timings_ms"][step] for step in steps]
    assert shown["(median)"] == [sorted(column)[1] for column in zip(*forks, strict=True)]
    assert shown["(max)"] == [max(column) for column in zip(*forks, strict=True)]
    ramet("rm", "-f", "timed-1", "timed-2", "timed-3")
    one = ramet("fork", "--name", "alone", "--timings", "warm").stdout.decode()
    assert "(median)" not in one
    ramet("rm", "-f", "alone")


def test_forks_that_all_fail_alike_give_their_own_code(guest: Shell) -> None:
    ramet = guest
    ramet("fork", "--name", "warm", "box")
    try:
        template = ramet.json("template", "warm", "--json")
        vmstate = Path(template["directory"]) / "vmstate"
        vmstate.write_bytes(bytes(vmstate.stat().st_size))
        report = ramet.json("fork", "-n", "2", "warm", "--json", code=1)
        shown = report.get("forks", [report])
        assert {failure["error"]["code"] for failure in shown} == {"damaged"}
        assert [instance["name"] for instance in ramet.json("ps", "-a", "--json")] == ["box", "warm"]
    finally:
        ramet("rm", "-f", "warm")
