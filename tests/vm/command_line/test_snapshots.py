"""Snapshots, standby, rewind and branches through the real command, on one running guest."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ramet.model.schema import Exported, Instance, SnapshotInfo, SnapshotInspection, Verification
from tests.support.shell import LIMIT_S, Shell, interrupt, read_terminal
from tests.vm.command_line.test_verbs import parsed

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def base(guest: Shell) -> Iterator[Shell]:
    """`ramet` on a home in which `box` runs and has one snapshot, `base`, from when /run/mark said `then`."""
    guest("exec", "box", "sh", "-c", "echo then > /run/mark")
    made = guest("snapshot", "create", "box", "--name", "base", "--label", "team=a", "--json").stdout
    assert parsed(made, SnapshotInfo).name == "base"
    yield guest
    if ids := guest("snapshot", "ls", "-q").stdout.split():
        guest("snapshot", "rm", *(snapshot_id.decode() for snapshot_id in ids))


def remove_all(shell: Shell, *names: str) -> None:
    shell("rm", "-f", *names)


class TestLooking:
    def test_ls(self, base: Shell) -> None:
        [one] = parsed(base("snapshot", "ls", "--json").stdout, list[SnapshotInfo])
        assert (one.name, one.source_name, one.labels) == ("base", "box", {"team": "a"})
        header, row = base("snapshot", "ls").stdout.decode().splitlines()
        assert header.split()[:3] == ["SOURCE", "NAME", "ID"]
        assert row.split()[:3] == ["box", "base", one.id]
        for words in (["box"], ["--filter", "team=a"], [one.source[:6]]):
            assert base("snapshot", "ls", "-q", *words).stdout.decode() == one.id + "\n"
        assert base.json("snapshot", "ls", "box", "--filter", "team=b", "--json") == []

    def test_inspect(self, base: Shell) -> None:
        inspection = parsed(base("snapshot", "inspect", "box/base", "--json").stdout, SnapshotInspection)
        assert {"mem", "vmstate", "kernel"} <= {part.name for part in inspection.parts}
        assert inspection.source_state == "running"
        assert inspection.arguments
        assert b"source_name: box" in base("snapshot", "inspect", "base").stdout

    def test_tree(self, base: Shell) -> None:
        root, leaf = base("tree").stdout.decode().splitlines()
        assert root.startswith("box  ")
        assert "snapshot base  " in leaf


class TestVerify:
    def test_a_whole_one(self, base: Shell) -> None:
        verification = parsed(base("snapshot", "verify", "base", "--json").stdout, Verification)
        assert verification.ok
        done = base("snapshot", "verify", "base")
        assert done.stderr == b""
        assert {line.split()[-1] for line in done.stdout.decode().splitlines()[1:]} == {"ok"}

    def test_one_changed_byte_of_which_the_file_shows_nothing(self, base: Shell) -> None:
        directory = Path(base.json("snapshot", "inspect", "base", "--json")["directory"])
        vmstate = directory / "vmstate"
        facts, whole = vmstate.stat(), vmstate.read_bytes()
        with vmstate.open("r+b") as file:
            file.seek(1000)
            file.write(bytes([whole[1000] ^ 1]))
        os.utime(vmstate, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        try:
            done = base("snapshot", "verify", "base", "--json", code=1)
            verification = parsed(done.stdout, Verification)
            assert not verification.ok
            assert [part.name for part in verification.parts if not part.ok] == ["vmstate"]
            assert b"ramet: base: vmstate: its content has changed" in done.stderr
            shown = base("snapshot", "verify", "base", code=1)
            assert b"damaged" in shown.stdout
            assert b"hint: " in shown.stderr
        finally:
            vmstate.write_bytes(whole)
            os.utime(vmstate, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        base("snapshot", "verify", "base")


class TestForks:
    def test_a_branch_says_for_how_long_its_source_stood_still(self, base: Shell) -> None:
        lines = base("fork", "box", "--name", "branch").stdout.decode().splitlines()
        assert "DELTA" not in lines[0]
        assert "; box was paused for " in lines[-1]
        assert lines[-1].endswith(" ms")
        assert base("exec", "branch", "cat", "/run/mark").stdout == b"then\n"
        lines = base("fork", "branch", "--name", "twig").stdout.decode().splitlines()
        assert "DELTA" in lines[0].split()
        assert lines[1].split()[3] == "delta"
        assert [snapshot["name"] for snapshot in base.json("snapshot", "ls", "--json")] == ["base"]
        remove_all(base, "branch", "twig")

    def test_of_a_snapshot(self, base: Shell) -> None:
        report = base.json("fork", "box/base", "-n", "2", "--name", "copy", "--require-shared", "--json")
        assert [receipt["name"] for receipt in report["forks"]] == ["copy-1", "copy-2"]
        assert [receipt["timings_ms"]["pause"] for receipt in report["forks"]] == [0, 0]
        [snapshot] = base.json("snapshot", "ls", "--json")
        assert snapshot["forks"] == 2
        assert base.json("inspect", "copy-1", "--json")["snapshot"] == snapshot["id"]
        lines = base("fork", "base", "--name", "other").stdout.decode().splitlines()
        assert "was paused" not in lines[-1]
        remove_all(base, "copy-1", "copy-2", "other")


class TestStates:
    def test_rewind(self, base: Shell) -> None:
        base("exec", "box", "sh", "-c", "echo now > /run/mark")
        assert parsed(base("rewind", "box", "base", "--json").stdout, Instance).state == "running"
        assert base("exec", "box", "cat", "/run/mark").stdout == b"then\n"
        assert base("rewind", "box").stdout == b"box\n"

    def test_standby_and_restore(self, base: Shell) -> None:
        base("exec", "box", "sh", "-c", "echo kept > /run/kept")
        shown = base.json("standby", "box", "nosuch", "--json", code=6)
        assert (shown[0]["state"], shown[0]["pid"]) == ("standby", None)
        lines = base("fork", "box", "--name", "from-standby").stdout.decode().splitlines()
        assert "was paused" not in lines[-1]
        assert base("snapshot", "create", "box", "--name", "asleep").stdout == b"box/asleep\n"
        assert base.json("restore", "box", "--json")["state"] == "running"
        assert base("exec", "box", "cat", "/run/kept").stdout == b"kept\n"
        assert base("exec", "from-standby", "cat", "/run/kept").stdout == b"kept\n"
        remove_all(base, "from-standby")
        assert base.json("snapshot", "rm", "asleep", "nosuch", "--json", code=6)["removed"]


class TestFiles:
    def test_out_and_in(self, base: Shell, tmp_path: Path) -> None:
        file = tmp_path / "base.ramet"
        exported = parsed(base("snapshot", "export", "base", str(file), "--json").stdout, Exported)
        assert (exported.bytes_written, exported.file) == (file.stat().st_size, str(file))
        made = base("snapshot", "import", str(file), "--name", "again", "--json").stdout
        assert parsed(made, SnapshotInfo).labels == {"team": "a"}
        base("snapshot", "verify", "again")
        base("fork", "again", "--name", "elsewhere")
        assert base("exec", "elsewhere", "cat", "/run/mark").stdout == b"then\n"
        assert len(base.json("snapshot", "rm", "again", "--json")["removed"]) == 1
        remove_all(base, "elsewhere")

    def test_through_a_pipe(self, base: Shell) -> None:
        sender = base.start("snapshot", "export", "base", "-")
        receiver = base.start("snapshot", "import", "-", "--name", "piped", stdin=sender.stdout)
        assert sender.stdout is not None
        sender.stdout.close()
        said, trouble = receiver.communicate(timeout=LIMIT_S)
        assert (receiver.returncode, said, trouble) == (0, b"box/piped\n", b"")
        assert sender.stderr is not None
        assert (sender.stderr.read(), sender.wait(timeout=LIMIT_S)) == (b"", 0)
        sender.stderr.close()
        base("snapshot", "rm", "piped")

    @pytest.mark.parametrize(("words", "stream"), [("export base -", "stdout"), ("import -", "stdin")])
    def test_not_through_a_terminal(self, base: Shell, words: str, stream: str) -> None:
        controller, terminal = pty.openpty()
        process = base.start("snapshot", *words.split(), **{stream: terminal})
        os.close(terminal)
        assert b"".join(read_terminal(controller)) == b""
        _, said = process.communicate(timeout=LIMIT_S)
        os.close(controller)
        assert process.returncode == 2
        assert b"terminal" in said

    def test_a_reader_that_goes(self, base: Shell) -> None:
        process = base.start("snapshot", "export", "base", "-")
        assert process.stdout is not None
        assert process.stdout.read(5) == b"RAMET"
        process.stdout.close()
        assert process.wait(timeout=LIMIT_S) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()

    def test_interrupted(self, base: Shell) -> None:
        process = base.start("snapshot", "export", "base", "-")
        assert process.stdout is not None
        assert process.stdout.read(5) == b"RAMET"  # nobody reads on: it waits
        assert interrupt(process) == 130
        part = base("snapshot", "export", "base", "-").stdout[: 1 << 20]
        before = base("snapshot", "ls", "-q").stdout
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb") as sink:
            process = base.start("snapshot", "import", "-", stdin=source)
            sink.write(part)  # more than a pipe holds: it has begun to read
            sink.flush()
            assert interrupt(process, signal.SIGTERM) == 143
        assert base("snapshot", "ls", "-q").stdout == before
        [directory] = (base.home / "snapshots").iterdir()
        assert directory.name == msgspec.json.decode(base("snapshot", "ls", "--json").stdout)[0]["id"]


@pytest.mark.core
def test_what_is_left_of_a_source_that_is_gone(base: Shell) -> None:
    """Last in this module: `box` goes, and all that was made of it."""
    base("rm", "-f", "box")
    base("fork", "box/base", "--name", "box")
    assert base("exec", "box", "cat", "/run/mark").stdout == b"then\n"
    assert base("snapshot", "rm", "base").stdout == b"base\n"
    assert base("exec", "box", "cat", "/run/mark").stdout == b"then\n"
    assert base.json("snapshot", "ls", "--json") == []
