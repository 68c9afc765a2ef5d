"""The examples in the help: each is a line that the command line takes, and those without a guest run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from ramet.cli.examples import EXAMPLES
from ramet.cli.main import app
from tests.support.shell import Shell, run_command

NEEDS_NO_GUEST = {"ps", "tree", "stats", "pool", "snapshot ls", "image ls", "kernel ls", "doctor"}
IMPERATIVES = re.compile(
    "(Add|Boot|Check|Compress|Decompress|Export|Fork|Import|Keep|List|Make|Measure|Pause|Power|Print|Pull|Push"
    "|Put|Remove|Restore|Resume|Return|Run|Show|Take|Wait|Write|Create) "
)


def commands(command: Any = None, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that isn't a group, by its words."""
    command = command or typer.main.get_command(app)
    children = getattr(command, "commands", None)
    if not children:
        yield path, command
    for name, child in (children or {}).items():
        yield from commands(child, f"{path} {name}".strip())


def calls(line: str) -> Iterator[list[str]]:
    """The calls of `ramet` in a shell's line, each as its arguments."""
    line = re.sub(r"\$\((.*?)\)", lambda match: "AN-ID" if list(calls(match[1])) else match[0], line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>")
    lexer.whitespace_split = True
    words = [*lexer]
    call: list[str] | None = None
    skip = False
    for word in words:
        if set(word) <= set("|<>"):
            if word == "|" and call is not None:
                yield call
                call = None
            skip = word != "|"
        elif skip:
            skip = False
        elif call is not None:
            call.append(word)
        elif word == "ramet":
            call = []
    if call is not None:
        yield call


def parse(arguments: list[str]) -> str:
    """Parse as the program does, and return the words of the command. Raises Typer's errors."""
    command: Any = typer.main.get_command(app)
    path: list[str] = []
    context = None
    while True:
        context = command.make_context(" ".join(["ramet", *path]), list(arguments), parent=context)
        if not getattr(command, "commands", None):
            return " ".join(path)
        name, command, arguments = command.resolve_command(context, context._protected_args + context.args)
        path.append(name)


def test_every_command_has_examples_and_no_other_has() -> None:
    assert set(EXAMPLES) == {path for path, _ in commands()} | {""}
    assert all(EXAMPLES.values())


@pytest.mark.parametrize("command", EXAMPLES)
def test_an_example_is_parsed_and_is_of_its_command(command: str) -> None:
    own = 0
    for caption, line in EXAMPLES[command]:
        if caption:
            assert caption[0].isupper(), caption
            assert not caption.endswith("."), caption
        found = [parse(arguments) for arguments in calls(line)]
        assert found, line
        own += command in found
    assert own or command == ""


def test_a_wrong_example_is_found() -> None:
    assert list(calls("ramet rm $(ramet ps -q) | jq . > FILE")) == [["rm", "AN-ID"]]
    assert list(calls("x | ramet ps")) == [["ps"]]
    for line in ("ramet ps --nosuch", "ramet fork", "ramet nosuch", "ramet run --cpus many builtin"):
        with pytest.raises(typer.TyperException):
            parse(next(calls(line)))


@pytest.mark.parametrize("command", sorted(NEEDS_NO_GUEST))
def test_an_example_without_a_guest_runs(ramet: Shell, command: str) -> None:
    for _, line in EXAMPLES[command]:
        for arguments in calls(line):
            done = run_command(arguments, ramet.environment)
            expected = (0, 5) if command == "doctor" else (3,) if "box" in arguments else (0,)
            assert done.returncode in expected, done  # 3: the home has no instances


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_help_begins_with_an_imperative_and_ends_with_the_examples(
    ramet: Shell, path: str, command: Any
) -> None:
    first = command.help.splitlines()[0]
    assert IMPERATIVES.match(first), first
    assert first.endswith("."), first
    assert len(first) <= 60, "the list of commands would cut it"
    text = ramet(*path.split(), "--help").stdout.decode()
    shown = text.partition("Examples:\n")[2]
    assert [line.strip() for line in shown.splitlines() if not line.strip().startswith("#")] == [
        example for _, example in EXAMPLES[path]
    ]


def test_no_option_is_without_help() -> None:
    for path, command in commands():
        for parameter in command.params:
            if parameter.name not in ("install_completion", "show_completion", "help"):
                assert parameter.help, (path, parameter.name)
                assert (
                    parameter.help[0].isupper()
                    or parameter.help[:1].isdigit()
                    or parameter.help.startswith(("qemu", "kvm"))
                ), parameter.help
                assert parameter.help.endswith("."), (path, parameter.help)
