"""Wrong requests through the real command: each names the thing, the reason and the next step, has its exit
code, and changes nothing. The run prints them as a table.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from ramet import config
from ramet.engine.fork.records import MOST_IN_A_CALL
from ramet.images.kernel import find_kernel
from ramet.paths import Home
from ramet.units import MIB
from tests.adversarial.wrong_input.lab import Attempt, Lab, add_failed, messages, world
from tests.side_by_side import tell
from tests.support.loop_filesystems import mounted
from tests.support.shell import Shell

pytestmark = pytest.mark.vm

READY_LIMIT_S = 2
ODD_QEMU = f"""
case $1 in --version) exec {config.qemu_binary()} --version;; esac
exec {config.qemu_binary()} "$@" -no-such-option
"""


class Case(NamedTuple):
    """What is wrong, the exit code, words of the message and of the hint, and how it is brought about."""

    what: str
    code: int
    message: str
    hint: str
    attempt: Callable[[Lab], AbstractContextManager[Attempt]]
    kind: str


CASES: list[Case] = []


def case(
    what: str, code: int, kind: str, message: str, hint: str
) -> Callable[[Callable[[Lab], Iterator[Attempt]]], None]:
    """Enter a case in the table. `kind` is the error's code in JSON."""

    def enter(function: Callable[[Lab], Iterator[Attempt]]) -> None:
        CASES.append(Case(what, code, message, hint, contextmanager(function), kind))

    return enter


def plainly(what: str, words: str, code: int, kind: str, message: str, hint: str) -> None:
    """A case that needs nothing but its words."""

    @case(what, code, kind, message, hint)
    def _(lab: Lab) -> Iterator[Attempt]:
        yield Attempt(words.split())


plainly("unknown image", "run --pull never debian", 3, "not_found", "image debian isn't", "ramet pull debian")
plainly("image, near miss", "run --pull never bultin", 3, "not_found", "bultin isn't", "you mean builtin?")
plainly("unknown reference", "inspect zzz", 3, "not_found", "no instance 'zzz'", "ramet ps -a")
plainly(
    "reference, near miss",
    "fork wram",
    3,
    "not_found",
    "no instance or snapshot 'wram'",
    "did you mean warm?",
)
plainly("name taken, run", "run --name warm builtin", 7, "name_taken", "named warm", "another name")
plainly("name taken, fork", "fork --name stopped warm", 7, "name_taken", "named stopped", "another name")
plainly("illegal name, run", "run --name ../x builtin", 2, "usage", "'../x' is not a legal name", "1 to 63")
plainly("illegal name, fork", "fork --name a/b warm", 2, "usage", "'a/b' is not a legal name", "1 to 63")
plainly(
    "fork of a stopped one", "fork stopped", 4, "wrong_state", "stopped is stopped", "ramet start stopped"
)
plainly("fork of a failed one", "fork failed", 4, "wrong_state", "failed is failed", "ramet ")
plainly("-n 0", "fork -n 0 warm", 2, "usage", "0 forks", f"1 to {MOST_IN_A_CALL}")
plainly("-n -1", "fork -n -1 warm", 2, "usage", "-1 forks", f"1 to {MOST_IN_A_CALL}")
plainly("-n 100000", "fork -n 100000 warm", 2, "usage", "100000 forks", "each is a process")
plainly("too little memory", "run --memory 16M builtin", 2, "usage", "16.0 MiB is less", "at least 96M")
plainly("more than the host's", "run --memory 900T builtin", 2, "usage", "more than this machine", "ask for")
plainly("a size that is none", "run --memory lots builtin", 2, "usage", "'lots' is not a size", "256M")
plainly("a disk too small", "run --disk 1K builtin", 2, "usage", "a disk of 1.0 KiB can't be", "1M to 16T")
plainly(
    "half a sector", "run --disk 1048577 builtin", 2, "usage", "a disk of 1.0 MiB can't be", "whole sectors"
)
plainly(
    "a disk too small for files", "run --disk 8M:/data builtin", 2, "usage", "8.0 MiB can't be", "16M to 16T"
)
plainly("nine disks", "run" + " --disk 1M" * 9 + " builtin", 2, "usage", "9 disks can't be", "8 at most")
plainly("a disk without size", "run --disk :/data builtin", 2, "usage", "'' is not a size", "256M or 2G")
plainly("a disk without path", "run --disk 1G: builtin", 2, "usage", "can be mounted at ''", "1G:/data")
plainly(
    "a path that isn't absolute", "run --disk 1G:data builtin", 2, "usage", "mounted at 'data'", "absolute"
)
plainly("a disk in place of all", "run --disk 1G:/ builtin", 2, "usage", "mounted at '/'", "absolute path")
plainly(
    "a path that leads up", "run --disk 1G:/a/../b builtin", 2, "usage", "mounted at '/a/../b'", "no . or .."
)
plainly("a path with a quote", "run --disk 1G:/a'b builtin", 2, "usage", "no disk can be mounted", "letters")
plainly(
    "a path of the kernel's", "run --disk 1G:/proc/x builtin", 2, "usage", "at /proc/x: the", "such as /data"
)
plainly(
    "a path of the agent's", "run --disk 1G:/run/ramet builtin", 2, "usage", "at /run/ramet", "such as /data"
)
plainly(
    "a path of the system's", "run --disk 1G:/usr/ builtin", 2, "usage", "at /usr: the guest", "such as /data"
)
plainly(
    "two disks in one place",
    "run --disk 1G:/data --disk 2G:/data/ builtin",
    2,
    "usage",
    "mounted at /data",
    "its own path",
)
plainly(
    "no such driver",
    "run --driver xen builtin",
    2,
    "usage",
    "no driver 'xen'",
    "auto, firecracker, qemu",
)
plainly(
    "no such accelerator", "run --accel warp builtin", 2, "usage", "no accelerator 'warp'", "there is auto"
)
plainly("stop of a template", "stop warm", 4, "wrong_state", "warm is a template", "ramet fork warm")
plainly("exec in a stopped one", "exec stopped true", 125, "wrong_state", "stopped is stopped", "ramet start")
plainly(
    "a contradiction", "fork --require-shared --no-share warm", 2, "usage", "contradict", "use one of them"
)


plainly("unknown snapshot", "snapshot inspect zzz", 3, "not_found", "no snapshot 'zzz'", "ramet snapshot ls")
plainly(
    "snapshot, near miss", "snapshot verify living/bse", 3, "not_found", "'living/bse'", "mean living/base?"
)
plainly("fork of a near miss", "fork livin/base", 3, "not_found", "or snapshot", "the snapshot living/base?")
plainly("ambiguous snapshot", "snapshot rm base", 2, "usage", "any of several snapshots", "say SOURCE/NAME")
plainly("fork of an ambiguous one", "fork base", 2, "usage", "any of several snapshots", "say SOURCE/NAME")
plainly(
    "name taken, snapshot",
    "snapshot create --name base living",
    7,
    "name_taken",
    "a snapshot named base",
    "another name",
)
plainly(
    "illegal name, snapshot", "snapshot create --name a/b living", 2, "usage", "'a/b' is not a", "1 to 63"
)
plainly(
    "snapshot of a template",
    "snapshot create warm",
    4,
    "wrong_state",
    "warm is a template",
    "ramet fork warm",
)
plainly(
    "snapshot of a stopped one",
    "snapshot create stopped",
    4,
    "wrong_state",
    "stopped is stopped",
    "ramet start stopped",
)
plainly(
    "snapshot of a snapshot", "snapshot create living/base", 3, "not_found", "is a snapshot", "ramet fork"
)
plainly(
    "inspect of a snapshot",
    "inspect living/base",
    3,
    "not_found",
    "is a snapshot",
    "ramet snapshot inspect living/base",
)
plainly(
    "rm of a snapshot", "rm living/base", 3, "not_found", "is a snapshot", "ramet snapshot rm living/base"
)
plainly(
    "snapshot rm of an instance", "snapshot rm living", 3, "not_found", "is an instance", "ramet rm living"
)
plainly("snapshots of nobody", "snapshot ls zzz", 3, "not_found", "no instance 'zzz'", "ramet ps -a")
plainly("rewind without snapshots", "rewind stopped", 3, "not_found", "stopped has no snapshot", "create")
plainly("rewind to another's", "rewind living asleep/base", 3, "not_found", "of living", "ramet snapshot ls")
plainly("restore of a running one", "restore living", 4, "wrong_state", "living is running already", "ramet")
plainly("restore of a stopped one", "restore stopped", 4, "wrong_state", "stopped is stopped", "ramet start")
plainly("standby of a template", "standby warm", 4, "wrong_state", "warm is a template", "ramet fork warm")
plainly(
    "standby twice", "standby asleep", 4, "wrong_state", "asleep is standby already", "ramet restore asleep"
)
plainly(
    "exec in standby", "exec asleep true", 125, "wrong_state", "asleep is standby", "ramet restore asleep"
)
plainly(
    "export to nowhere", "snapshot export living/base no/such", 1, "filesystem", "no/such", "make it first"
)
plainly("JSON among the export", "snapshot export living/base -", 2, "usage", "standard output", "to a file")
plainly("import of nothing", "snapshot import no/such", 1, "filesystem", "no file no/such", "snapshot export")
plainly("import of an empty stream", "snapshot import -", 1, "damaged", "cut short", "export it again")


@case("export to an existing file", 2, "usage", "exported exists", "another name")
def _(lab: Lab) -> Iterator[Attempt]:
    yield Attempt(["snapshot", "export", "living/base", str(lab.exported)])


@case("import, name taken", 7, "name_taken", "named base of living already", "another name")
def _(lab: Lab) -> Iterator[Attempt]:
    yield Attempt(["snapshot", "import", "--name", "base", str(lab.exported)])


def imported(
    what: str, kind: str, code: int, message: str, hint: str, change: Callable[[Path], object]
) -> None:
    """A file that isn't what `export` wrote."""

    @case(what, code, kind, message, hint)
    def _(lab: Lab) -> Iterator[Attempt]:
        file = lab.scratch / "changed"
        file.write_bytes(lab.exported.read_bytes())
        change(file)
        yield Attempt(["snapshot", "import", str(file)])
        file.unlink()


def _put(offset: int, data: bytes) -> Callable[[Path], object]:
    """Write `data` there; a negative offset counts from the end."""

    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
            file.write(data)

    return change


imported(
    "import of garbage", "damaged", 1, "changed", "export", lambda path: path.write_bytes(b"ab\n" * 9999)
)
imported(
    "import, truncated",
    "damaged",
    1,
    "is cut short",
    "export it again",
    lambda path: os.truncate(path, path.stat().st_size - 1),
)
imported("import, altered", "damaged", 1, "is damaged", "export it again", _put(-100_000, b"altered"))
imported("import, longer", "damaged", 1, "follows after its end", "export", lambda path: _grow(path))
imported("import of a newer one", "unavailable", 5, "format", "upgrade ramet", _put(8, b"\x63"))


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def damaged_snapshot(what: str, part: str, change: Callable[[Path], object], message: str) -> None:
    """A snapshot whose part isn't what was published. Its source runs on; that is part of the world."""

    @case(what, 1, "damaged", message, "make the capture again")
    def _(lab: Lab) -> Iterator[Attempt]:
        with lab.altered(part, change, lab.snapshot):
            yield Attempt(["fork", "living/base"])


damaged_snapshot("a part missing", "vmstate", lambda path: path.unlink(), "vmstate is missing")
damaged_snapshot("a delta missing", "delta", lambda path: path.unlink(), "delta is missing")
damaged_snapshot("a base missing", "mem", lambda path: path.unlink(), "mem is missing")
damaged_snapshot("a delta truncated", "delta", lambda path: os.truncate(path, 5000), "size_bytes is 5000")
damaged_snapshot("a delta altered", "delta", _put(4096, b"not what was there"), "mtime_ns is")
damaged_snapshot(
    "a part of another's", "vmstate", lambda path: shutil.copy(_foreign(path), path), "mtime_ns is"
)
damaged_snapshot(
    "a snapshot's manifest",
    "manifest.json",
    lambda path: os.truncate(path, 100),
    "manifest.json can't be read",
)


def _foreign(part: Path) -> Path:
    """The same part of another snapshot."""
    return next(path for path in part.parent.parent.glob(f"*/{part.name}") if path != part)


@case("rewind to a damaged one", 1, "damaged", "vmstate is missing", "make the capture again")
def _(lab: Lab) -> Iterator[Attempt]:
    with lab.altered("vmstate", lambda path: path.unlink(), lab.snapshot):
        yield Attempt(["rewind", "living", "base"])


@case("export of a damaged one", 1, "damaged", "vmstate is missing", "make the capture again")
def _(lab: Lab) -> Iterator[Attempt]:
    with lab.altered("vmstate", lambda path: path.unlink(), lab.snapshot):
        yield Attempt(["snapshot", "export", "living/base", str(lab.scratch / "never")])


@case("QEMU missing", 5, "unavailable", "QEMU (nowhere/qemu) can't be run", "apt-get install")
def _(lab: Lab) -> Iterator[Attempt]:
    yield Attempt(["run", "builtin"], {"RAMET_QEMU": "nowhere/qemu"})


@case("QEMU missing, fork", 5, "unavailable", "QEMU (nowhere/qemu) can't be run", "apt-get install")
def _(lab: Lab) -> Iterator[Attempt]:
    yield Attempt(["fork", "warm"], {"RAMET_QEMU": "nowhere/qemu"})


@case("QEMU too old", 5, "unavailable", "is 6.2.0: ramet needs 7.2 or newer", "RAMET_QEMU")
def _(lab: Lab) -> Iterator[Attempt]:
    old = lab.script("qemu-old", "echo 'QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2)'")
    yield Attempt(["run", "builtin"], {"RAMET_QEMU": old})


@case(
    "another QEMU than the template's",
    5,
    "unavailable",
    "warm was saved by qemu",
    "set RAMET_QEMU",
)
def _(lab: Lab) -> Iterator[Attempt]:
    newer = lab.script("qemu-newer", "echo 'QEMU emulator version 99.1.0'")
    yield Attempt(["fork", "warm"], {"RAMET_QEMU": newer})


@case("a path with a space", 2, "usage", "mounted at '/my data'", "letters, digits")
def _(lab: Lab) -> Iterator[Attempt]:
    yield Attempt(["run", "--disk", "1G:/my data", "builtin"])


@case("no mke2fs", 5, "unavailable", "mke2fs (no-such-mke2fs) can't be run", "e2fsprogs")
def _(lab: Lab) -> Iterator[Attempt]:
    """Its place is given up in the process that runs the command: PATH alone hides nothing of /sbin."""
    without = (
        "import sys, ramet.disk.filesystem as f; f._PROGRAM = 'no-such-mke2fs'; "
        "from ramet.cli.main import main; sys.exit(main())"
    )
    yield Attempt(["run", "--disk", "1G:/data", "builtin"], command=[sys.executable, "-c", without])


@case("the VMM dies during boot", 1, "vmm_failed", "invalid option", "ramet doctor")
def _(lab: Lab) -> Iterator[Attempt]:
    wrapper = lab.script("qemu-odd", ODD_QEMU)
    yield Attempt(["run", "builtin"], {"RAMET_QEMU": wrapper})


@case("the VMM dies during a fork", 1, "vmm_failed", "invalid option", "ramet doctor")
def _(lab: Lab) -> Iterator[Attempt]:
    wrapper = lab.script("qemu-odd", ODD_QEMU)
    yield Attempt(["fork", "warm"], {"RAMET_QEMU": wrapper})


@case("no kernel", 5, "unavailable", "no Linux kernel for guests", "make setup")
def _(lab: Lab) -> Iterator[Attempt]:
    if list(Path("/boot").glob("vmlinuz-*")):
        pytest.skip("this host has kernels of its own in /boot")
    yield Attempt(["run", "builtin"], {"RAMET_CACHE": str(lab.scratch / "empty-cache")})


@case("RAMET_KERNEL leads nowhere", 5, "unavailable", "nowhere/vmlinuz", "RAMET_KERNEL")
def _(lab: Lab) -> Iterator[Attempt]:
    yield Attempt(["run", "builtin"], {"RAMET_KERNEL": str(lab.scratch / "nowhere/vmlinuz")})


@case("RAMET_KERNEL is a text", 5, "unavailable", "notes.txt", "RAMET_KERNEL")
def _(lab: Lab) -> Iterator[Attempt]:
    text = lab.scratch / "notes.txt"
    text.write_text("buy milk\n" * 1000)
    yield Attempt(["run", "builtin"], {"RAMET_KERNEL": str(text)})


@case("a guest that never gets ready", 1, "guest_timeout", f"within {READY_LIMIT_S} s", "ramet ")
def _(lab: Lab) -> Iterator[Attempt]:
    """Its init is a shell that sleeps; the limit is shortened in the process that runs the command."""
    init = lab.scratch / "sleeper"
    init.write_text("#!/bin/busybox sh\necho what the guest said last\nexec /bin/busybox sleep 1000\n")
    shortened = (
        f"import sys, ramet.engine.lifecycle.boot as b; b.READY_LIMIT_S = {READY_LIMIT_S}.0; "
        "from ramet.cli.main import main; sys.exit(main())"
    )
    environment = {"RAMET_AGENT": str(init), "RAMET_CACHE": str(lab.scratch / "cache")}
    kernel = {"RAMET_KERNEL": str(find_kernel().vmlinuz)}
    yield Attempt(["run", "builtin"], environment | kernel, command=[sys.executable, "-c", shortened])


def damaged(what: str, part: str, change: Callable[[Path], object], message: str) -> None:
    """A template whose part isn't what was published."""

    @case(what, 1, "damaged", message, "make the capture again")
    def _(lab: Lab) -> Iterator[Attempt]:
        with lab.altered(part, change):
            yield Attempt(["fork", "warm"])


def _rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"not what was there")


damaged("mem-file truncated", "mem", lambda path: os.truncate(path, MIB), "size_bytes is 1048576")
damaged("mem-file grown", "mem", lambda path: os.truncate(path, 512 * MIB), "size_bytes is 536870912")
damaged("mem-file altered", "mem", _rewrite, "mtime_ns is")
damaged("mem-file missing", "mem", lambda path: path.unlink(), "mem")
damaged("vmstate truncated", "vmstate", lambda path: os.truncate(path, 1000), "size_bytes is 1000")
damaged("vmstate altered", "vmstate", _rewrite, "mtime_ns is")
damaged("kernel altered", "kernel", _rewrite, "mtime_ns is")
damaged(
    "manifest truncated", "manifest.json", lambda path: os.truncate(path, 100), "manifest.json can't be read"
)


@case("a damaged database", 1, "store", "ramet.db", "nothing has been removed")
def _(lab: Lab) -> Iterator[Attempt]:
    home = lab.scratch / "damaged-home"
    Home(home).make()
    (home / "ramet.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    yield Attempt(["ps"], home=home)


@case("a home of a newer ramet", 1, "store", "newer ramet", "upgrade ramet")
def _(lab: Lab) -> Iterator[Attempt]:
    home = lab.scratch / "newer-home"
    Home(home).make()
    with sqlite3.connect(home / "ramet.db") as connection:
        connection.execute("PRAGMA user_version = 4000")
    connection.close()
    yield Attempt(["ps"], home=home)


@case("a home that is a file", 5, "unavailable", "/file", "RAMET_HOME")
def _(lab: Lab) -> Iterator[Attempt]:
    (lab.scratch / "file").write_text("")
    yield Attempt(["ps"], home=lab.scratch / "file")


@case("a read-only home", 5, "unavailable", "Read-only", "RAMET_HOME")
def _(lab: Lab) -> Iterator[Attempt]:
    with mounted("-t", "tmpfs", "-o", "ro,size=1m", "tmpfs") as place:
        yield Attempt(["run", "builtin"], home=place / "home")


@case("a home that has become read-only", 5, "unavailable", "Read-only", "RAMET_HOME")
def _(lab: Lab) -> Iterator[Attempt]:
    with mounted("-t", "tmpfs", "-o", "size=4m", "tmpfs") as place:
        lab.ask(Attempt(["ps"], home=place))
        subprocess.run(["mount", "-o", "remount,ro", place], check=True, timeout=30)
        yield Attempt(["run", "builtin"], home=place)


@case("a full home, new", 1, "store", "ramet.db", "free")
def _(lab: Lab) -> Iterator[Attempt]:
    with mounted("-t", "tmpfs", "-o", "size=256k", "tmpfs") as place:
        Home(place / "home").make()
        fill(place)
        yield Attempt(["run", "builtin"], home=place / "home")


@case("a home too small for an instance", 1, "filesystem", "No space left", "free some space")
def _(lab: Lab) -> Iterator[Attempt]:
    with mounted("-t", "tmpfs", "-o", "size=8m", "tmpfs") as place:
        lab.ask(Attempt(["ps"], home=place))
        yield Attempt(["run", "builtin"], home=place)


def fill(directory: Path) -> None:
    """Leave not a byte free."""
    with (directory / "ballast").open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


@pytest.fixture(scope="module")
def lab(warm_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The warm home, with two instances that can't be forked, and two that have snapshots."""
    shell = Shell(warm_home)
    template = next(instance for instance in shell.json("ps", "-a", "--json") if instance["name"] == "warm")
    shell("fork", "--name", "stopped", "warm")
    shell("stop", "stopped")
    add_failed(shell)
    # On the home's own filesystem, so that parts can be moved there and back.
    scratch = warm_home.parent / "wrong-input"
    scratch.mkdir()
    for name in ("living", "asleep"):
        shell("fork", "--name", name, "warm")
        shell("snapshot", "create", name, "--name", "base")
    shell("standby", "asleep")
    snapshot = Path(shell.json("snapshot", "inspect", "living/base", "--json")["directory"])
    shell("snapshot", "export", "living/base", str(scratch / "exported"))
    yield Lab(shell, scratch, Path(template["directory"]), snapshot, scratch / "exported")
    assert not (scratch / "never").exists()
    assert shell("exec", "living", "hostname").stdout == b"living\n"
    shell("snapshot", "rm", "living/base", "asleep/base")
    shell("rm", "-f", "stopped", "failed", "living", "asleep")


@pytest.fixture(scope="module")
def table(lab: Lab) -> Iterator[list[tuple[str, str, int, str]]]:
    """The rows so far; printed at the end."""
    rows: list[tuple[str, str, int, str]] = []
    yield rows
    lines = ["", "| wrong | command | exit | what it says |", "| --- | --- | --- | --- |"]
    for what, words, code, said in rows:
        said = said.replace(str(lab.template), "HOME/instances/ID").replace(str(lab.scratch), "DIR")
        said = said.replace(str(lab.snapshot), "HOME/snapshots/ID")
        lines.append(f"| {what} | `{words}` | {code} | {said.replace('|', chr(92) + '|')} |")
    tell("\n".join(lines))


@pytest.mark.parametrize("one", CASES, ids=[case.what.replace(" ", "-") for case in CASES])
def test_wrong_input(one: Case, lab: Lab, table: list[tuple[str, str, int, str]]) -> None:
    with ExitStack() as stack:
        attempt = stack.enter_context(one.attempt(lab))
        home = attempt.home or lab.home
        before = world(home)
        shown = lab.ask(attempt, "--json")
        after = world(home)
    assert shown.code == one.code, shown
    lines = shown.err.splitlines()
    assert len(lines) == 2, shown.err
    assert lines[0].startswith("ramet: ")
    assert one.message in lines[0], lines
    assert lines[1].startswith("hint: ")
    assert one.hint in lines[1], lines
    assert [error["code"] for error in messages(shown)] == [one.kind]
    # The same words for people and for programs.
    assert [lines[0].endswith(error["message"]) for error in messages(shown)] == [True], shown
    assert after == before
    variables = "".join(f"{key}=… " for key in sorted(attempt.environment))
    table.append((one.what, f"{variables}ramet {shlex.join(attempt.words)}", one.code, "<br>".join(lines)))
