"""What can be said without a VM: help, version, wrong words, exit codes, documents."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import anyio
import msgspec
import pytest
import typer

from ramet import errors
from ramet.api.host import Host
from ramet.api.references import resolve
from ramet.cli import calling, output, tables
from ramet.cli.completion import complete_reference, complete_snapshot, complete_source
from ramet.cli.main import app
from ramet.cli.options import environment, pairs, without_separator
from ramet.model.command import ExitStatus
from ramet.model.exec_result import Collector
from ramet.paths import Home
from ramet.system import process_ref
from ramet.version import __version__
from tests.support.shell import COMMAND, Shell, read_terminal

VERBS = {
    *("serve", "pool", "pull", "disk"),
    *("demo", "run", "ps", "tree", "inspect", "logs", "stats", "wait", "exec", "stop", "start", "pause"),
    *(
        "resume",
        "standby",
        "restore",
        "rewind",
        "snapshot",
        "rm",
        "template",
        "fork",
        "keep",
        "image",
        "kernel",
        "doctor",
    ),
}


def test_version_and_help(ramet: Shell) -> None:
    assert ramet("--version").stdout.decode() == f"ramet {__version__}\n"
    text = ramet("--help").stdout.decode()
    assert text == ramet("-h").stdout.decode()
    commands = text.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert {line.split()[0] for line in commands} == VERBS


def test_every_verb_knows_help_and_json(ramet: Shell) -> None:
    command = typer.main.get_command(app)
    for name, verb in command.commands.items():  # type: ignore[attr-defined]
        for subcommand in getattr(verb, "commands", {name: verb}).values():
            assert "--json" in {option for parameter in subcommand.params for option in parameter.opts}, (
                subcommand.name
            )
            assert subcommand.help, subcommand.name


def test_help_of_template_says_what_it_is_not(ramet: Shell) -> None:
    said = b" ".join(ramet("template", "--help").stdout.split())
    assert b"Not a build recipe" in said
    assert b"never started or restored again" in said


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["nosuchverb"], 2),
        (["ps", "--nosuchoption"], 2),
        (["ps", "--filter", "nonsense"], 2),
        (["ps", "--filter", "state=asleep"], 2),
        (["inspect"], 2),
        (["exec"], 2),
        (["run", "--cpus", "many", "builtin"], 2),
        (["run", "--memory", "lots", "builtin"], 2),
        (["run", "--label", "nonsense", "builtin"], 2),
        (["demo", "--memory", "16M"], 2),
        (["run", "--pull", "never", "nosuchimage"], 3),
        (["inspect", "nosuch"], 3),
        (["stop", "nosuch"], 3),
        (["rm", "-f", "nosuch"], 3),
        (["fork", "nosuch"], 3),
        (["wait", "nosuch"], 3),
        (["logs", "nosuch"], 3),
        (["stats", "nosuch"], 3),
        (["stop", "nosuch", "neither"], 3),
        (["standby", "nosuch"], 3),
        (["rewind", "nosuch"], 3),
        (["snapshot"], 2),
        (["snapshot", "create", "nosuch"], 3),
        (["snapshot", "create", "--label", "nonsense", "nosuch"], 2),
        (["snapshot", "ls", "nosuch"], 3),
        (["snapshot", "ls", "--filter", "nonsense"], 2),
        (["snapshot", "rm", "nosuch", "neither"], 3),
        (["snapshot", "export", "nosuch", "-"], 3),
        (["snapshot", "import", "/nosuch"], 1),
        (["exec", "nosuch", "true"], 125),
        (["exec", "--timeout", "0", "nosuch", "true"], 125),
        (["run", "--pull", "never", "nosuchimage", "--", "true"], 125),
    ],
)
def test_exit_codes_without_a_guest(ramet: Shell, words: list[str], code: int) -> None:
    done = ramet(*words, code=code)
    assert done.stdout == b""
    assert done.stderr


@pytest.mark.parametrize(
    ("words", "code", "name"),
    [
        (["inspect", "nosuch", "--json"], 3, "not_found"),
        (["ps", "--json", "--nosuchoption"], 2, "usage"),
        (["exec", "--json", "nosuch", "--", "ls", "-l"], 125, "not_found"),
        (["image", "ls", "--json", "extra"], 2, "usage"),
    ],
)
def test_errors_as_json(ramet: Shell, words: list[str], code: int, name: str) -> None:
    done = ramet(*words, code=code)
    error = msgspec.json.decode(done.stdout)["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["code"] == name
    assert error["message"] in done.stderr.decode()


def test_lists_of_nothing(ramet: Shell) -> None:
    assert ramet.json("ps", "--json") == []
    assert ramet.json("tree", "--json") == []
    assert ramet.json("stats", "--json") == []
    assert ramet.json("snapshot", "ls", "--json") == []
    assert ramet("snapshot", "ls").stdout.split()[:3] == [b"SOURCE", b"NAME", b"ID"]
    assert ramet("ps", "-q").stdout == b""
    assert ramet("ps").stdout.split()[:3] == [b"NAME", b"ID", b"STATE"]


def test_doctor_gives_a_verdict(ramet: Shell) -> None:
    done = subprocess.run(
        [*COMMAND, "doctor", "--json"], env=ramet.environment, capture_output=True, timeout=60, check=False
    )
    report = msgspec.json.decode(done.stdout)
    assert done.returncode == (0 if report["ok"] else 5)
    assert {"qemu", "kvm", "kernel", "busybox", "agent", "home"} <= {
        check["name"] for check in report["checks"]
    }


def test_doctor_without_qemu(ramet: Shell) -> None:
    ramet.environment["RAMET_QEMU"] = "/nonexistent/qemu"
    report = ramet.json("doctor", "--json", code=5)
    assert report["ok"] is False
    (qemu,) = (driver for driver in report["drivers"] if driver["name"] == "qemu")
    assert qemu["usable"] is False
    assert qemu["reason"]


def test_stopped_instances_are_listed_when_asked_for(ramet: Shell, stored: Home) -> None:
    try:
        assert ramet("ps", "-q").stdout == b""
        assert ramet("ps", "-aq").stdout == b"aaaabbbbcccc\naaaa11112222\n"
        assert len(ramet.json("ps", "--json", "--filter", "state=stopped")) == 2
        assert ramet.json("ps", "-a", "--json", "--filter", "team=b") == []
        assert ramet.json("inspect", "--json", "aaaab")["name"] == "first"
        assert b"the beginning of several ids" in ramet("inspect", "aaaa", code=2).stderr
        assert b"did you mean first?" in ramet("inspect", "frist", code=3).stderr
        tree = ramet("tree").stdout.decode().splitlines()
        assert [line.split()[0] for line in tree] == ["first", "second"]
    finally:
        assert ramet.json("rm", "first", "second", "--json") == {"removed": ["aaaabbbbcccc", "aaaa11112222"]}


def test_a_narrow_terminal_loses_nothing(ramet: Shell, stored: Home) -> None:
    controller, terminal = pty.openpty()
    ramet.environment |= {"COLUMNS": "30", "TERM": "xterm"}
    process = ramet.start("ps", "-a", stdout=terminal)
    os.close(terminal)
    said = b"".join(read_terminal(controller))
    process.communicate(timeout=60)
    os.close(controller)
    assert b"\x1b[" in said  # it knows that this is a terminal
    for word in ("first", "aaaabbbbcccc", "stopped", "builtin", "qemu/tcg", "AGE"):
        assert word.encode() in said
    assert "…" not in said.decode()
    ramet("rm", "first", "second")


def test_partly_done_is_said(ramet: Shell, stored: Home) -> None:
    document = ramet.json("rm", "first", "nosuch", "--json", code=6)
    assert document["removed"] == ["aaaabbbbcccc"]
    assert document["failed"][0]["reference"] == "nosuch"
    ramet("rm", "second")


def test_completion_reads_names_from_the_store(
    monkeypatch: pytest.MonkeyPatch, home: Path, stored: Home
) -> None:
    monkeypatch.setenv("RAMET_HOME", str(home))
    assert complete_reference("fi") == [("first", "stopped")]
    assert complete_reference("aaaab") == [("aaaabbbbcccc", "first")]
    monkeypatch.setenv("RAMET_HOME", str(home / "nosuch"))
    assert complete_reference("") == []
    assert not (home / "nosuch").exists()


def test_completion_in_the_shell(ramet: Shell, stored: Home) -> None:
    environment = {
        **ramet.environment,
        "_RAMET_COMPLETE": "complete_bash",
        "COMP_WORDS": "ramet inspect se",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(COMMAND, env=environment, capture_output=True, timeout=60, check=False)
    assert done.stdout.split() == [b"second"]


def test_completion_of_snapshots(monkeypatch: pytest.MonkeyPatch, home: Path, captured: Home) -> None:
    monkeypatch.setenv("RAMET_HOME", str(home))
    assert complete_snapshot("gone/") == [("gone/base", "snapshot"), ("gone/first", "snapshot")]
    assert complete_snapshot("beef") == [("beef00000000", "first/aaaa1111")]
    assert [word for word, _ in complete_source("first")] == ["first", "first/aaaa1111", "first/base"]


@pytest.mark.parametrize(
    ("reference", "meant"),
    [
        ("first", "<VM first aaaabbbbcccc>"),
        ("aaaabbbbcccc", "<VM first aaaabbbbcccc>"),
        # A name before the beginning of an id, though that is an instance's.
        ("aaaa1111", "<Snapshot aaaa1111 beef00000000>"),
        ("aaaa11112", "<VM second aaaa11112222>"),
        ("first/base", "<Snapshot base aaaabbbb0000>"),
        ("gone/first", "<Snapshot first aaaadddd0000>"),
        ("beef", "<Snapshot aaaa1111 beef00000000>"),
        ("base", "usage: 'base' may be any of several snapshots"),
        ("aaaabbbb", "usage: 'aaaabbbb' is the beginning of several ids"),
        ("aaaa", "usage: 'aaaa' may be any of several snapshots"),
        ("frist", "not_found: no instance or snapshot 'frist' (did you mean first?)"),
        ("nothing", "not_found: no instance or snapshot 'nothing' (`ramet ps -a` and `ramet snapshot ls`"),
    ],
)
def test_what_a_source_refers_to(home: Path, captured: Home, reference: str, meant: str) -> None:
    async def found() -> str:
        async with Host(home) as host:
            try:
                return repr(await resolve(host, reference))
            except errors.RametError as error:
                return f"{error.code}: {error}"

    assert anyio.run(found).startswith(meant)


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("ps", 141),
        pytest.param("ps --json", 141, marks=pytest.mark.slow),
        pytest.param("inspect nosuch --json", 3, marks=pytest.mark.slow),
    ],
)
def test_a_closed_pipe_is_no_traceback(ramet: Shell, words: str, code: int, buffered: bool) -> None:
    ramet.environment["PYTHONUNBUFFERED"] = "" if buffered else "1"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        process = ramet.start(*words.split(), stdout=gone)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.startswith(b"ramet: no instance") if code == 3 else said == b""
    assert b"Traceback" not in said


FULL = b"ramet: No space left on device\n"


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param("ps", 1, b"", marks=pytest.mark.slow),
        pytest.param("ps --json", 1, b"", marks=pytest.mark.slow),
        pytest.param("--help", 1, b"", marks=pytest.mark.slow),
        ("--version", 1, b""),
        # The error is what counts; that its document could not be written either is said besides.
        pytest.param(
            "inspect nosuch --json", 3, b"ramet: no instance 'nosuch'\nhint: ", marks=pytest.mark.slow
        ),
        ("stop --nosuch --json", 2, b"ramet: No such option: --nosuch\nhint: "),
    ],
)
def test_a_full_disk_is_an_error(ramet: Shell, words: str, code: int, said: bytes, buffered: bool) -> None:
    """Also where Python buffers standard output and would try again at exit, with an exit code of its own."""
    ramet.environment["PYTHONUNBUFFERED"] = "" if buffered else "1"
    with Path("/dev/full").open("wb") as full:
        process = ramet.start(*words.split(), stdout=full)
        _, heard = process.communicate(timeout=60)
    assert process.returncode == code
    assert heard.startswith(said)
    assert heard.endswith(FULL)
    assert heard.count(b"\n") == said.count(b"\n") + (2 if said else 1), heard


def test_closed_standard_streams_are_not_reused(ramet: Shell) -> None:
    script = f"{sys.executable} -m ramet.cli.main ps <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", script], env=ramet.environment, timeout=60, check=False)
    assert done.returncode == 0
    assert (ramet.home / "ramet.db").read_bytes().startswith(b"SQLite format 3")


def test_internal_errors_are_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAMET_DEBUG", raising=False)
    assert calling.report(ValueError("surprise"), json=False) == 1
    assert calling.report(ValueError("surprise"), json=False, in_guest=True) == 125
    said = capfd.readouterr().err
    assert said.splitlines()[0] == "ramet: internal error: ValueError: surprise"
    assert "Traceback" not in said
    monkeypatch.setenv("RAMET_DEBUG", "1")
    calling.report(ValueError("surprise"), json=False)
    assert "ValueError: surprise" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "plain", "in_guest"),
    [
        (errors.NotFoundError("x"), 3, 125),
        (errors.WrongStateError("x"), 4, 125),
        (errors.ExecNotFoundError("x"), 127, 127),
        (errors.ExecNotExecutableError("x"), 126, 126),
        (errors.ExecTimeoutError("x"), 124, 124),
        (OSError(28, "No space left on device"), 1, 125),
    ],
)
def test_exit_codes_of_errors(error: Exception, plain: int, in_guest: int) -> None:
    assert calling.report(error, json=False) == plain
    assert calling.report(error, json=False, in_guest=True) == in_guest


def test_codes_lead_back_to_exit_codes() -> None:
    assert calling.exit_code_of("not_shared") == 5
    assert calling.exit_code_of("name_taken") == 7
    assert calling.exit_code_of("vmm_timeout") == 1
    assert calling.exit_code_of("unheard of") == 1


def test_the_most_telling_of_a_group() -> None:
    from ramet.cli.calling import _plainest

    told = errors.GuestError("told")
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [told])])
    assert _plainest(group) is told


def test_a_terminal_is_never_driven_by_text() -> None:
    assert output.clean("a\x1b[2Jb\nc\u202ed") == "ab cd"


def test_labels_of_an_import_cannot_drive_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tables.fields({"labels": {"a\x1b[2J\nb": "c\x1b]0;d\x07"}})
    assert capsys.readouterr().out == "labels:\n  a b: c\n"


def test_words_of_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "yes")
    monkeypatch.delenv("NOT_HERE", raising=False)
    assert environment(["A=1=2", "HERE", "NOT_HERE", "E="]) == {"A": "1=2", "HERE": "yes", "E": ""}
    assert pairs(["a=b", "c="], what="label") == {"a": "b", "c": ""}
    assert without_separator(["--", "ls", "--"]) == ["ls", "--"]
    assert without_separator(["ls", "--", "x"]) == ["ls", "--", "x"]
    assert without_separator(None) == []


def test_how_a_command_ended() -> None:
    assert Collector(["x"]).result(ExitStatus(3, None)).shell_code == 3
    assert Collector(["x"]).result(ExitStatus(None, 9)).shell_code == 137
    with pytest.raises(errors.ExecTimeoutError, match=r"x didn't end within 1.5 s"):
        Collector(["x"], timeout_s=1.5).result(ExitStatus(None, 9, timed_out=True))
    with pytest.raises(errors.ExecTimeoutError, match=r"x didn't end within 0 s"):
        Collector(["x"]).result(ExitStatus(None, 9, timed_out=True))  # a guest may say anything


def test_imports_stay_lazy() -> None:
    script = (
        "import sys, ramet.cli.main; print([m for m in ('anyio', 'rich', 'msgspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"[]\n"


def test_abandoned_demo_homes_are_told_by_their_owner(tmp_path: Path) -> None:
    import anyio

    from ramet.api.temporary_home import remove_abandoned

    me = process_ref.this_process()
    living, dead = tmp_path / f"demo-{me.pid}-{me.started}-abc", tmp_path / f"demo-{me.pid}-1-abc"
    other = tmp_path / "demo-of-mine"
    for path in (living, dead, other):
        path.mkdir()
    anyio.run(remove_abandoned, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([living, other])
