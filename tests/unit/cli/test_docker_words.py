"""Docker's commands and options get a hint at what ramet has, and no hint names what isn't there."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
import typer

from ramet.cli.docker_words import COMMANDS, RUN_OPTIONS, option_hint
from ramet.cli.main import app
from tests.support.shell import Shell

_RAMET: Any = typer.main.get_command(app)
_WORDS = re.compile(r"`ramet ([^`]+)`")


def found(words: list[str]) -> tuple[Any, list[str]]:
    """The command that `words` begin with, and the words after it."""
    command = _RAMET
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("rmi app:1", "`ramet image rm`"),
        ("images", "`ramet image ls`"),
        ("push app:1", "`ramet image push IMAGE REFERENCE`"),
        ("import app.tar", "`ramet image import`"),
        ("load -i app.tar", "`ramet image import`"),
        ("image load -i app.tar", "`ramet image import`"),
        ("run -it app sh", "there are no terminals yet"),
        ("exec -it box sh", "there are no terminals yet"),
        ("run -p 80:80 app", "no network yet"),
        ("run --volume=/a:/b app", "no directories of this machine yet"),
    ],
)
def test_a_word_of_dockers_is_answered_with_ramets_own(ramet: Shell, words: str, hint: str) -> None:
    done = ramet(*words.split(), code=2)
    text = done.stderr.decode()
    assert hint in text.split("hint: ")[1]
    assert "Did you mean" not in text
    assert "Possible options" not in text


def test_the_hint_is_in_the_document(ramet: Shell) -> None:
    error = msgspec.json.decode(ramet("images", "--json", code=2).stdout)["error"]
    assert error == {
        "code": "usage",
        "message": "there is no command `ramet images`",
        "hint": COMMANDS["images"],
    }


def test_other_words_keep_their_near_names(ramet: Shell) -> None:
    assert b"Did you mean 'image'?" in ramet("imgae", code=2).stderr
    assert b"Did you mean 'ls'?" in ramet("image", "list", code=2).stderr
    assert b"--name" in ramet("run", "--nmae", "x", "builtin", code=2).stderr


@pytest.mark.parametrize("path", COMMANDS)
def test_no_command_of_ramets_is_shadowed(path: str) -> None:
    assert found(path.split())[1], f"`ramet {path}` exists: take it off the list"


@pytest.mark.parametrize("option", RUN_OPTIONS)
def test_no_option_of_ramets_is_shadowed(option: str) -> None:
    run, _ = found(["run"])
    assert option not in {name for parameter in run.params for name in parameter.opts}
    assert option_hint("ramet run", option)
    assert option_hint("ramet fork", option) is None


@pytest.mark.parametrize("hint", sorted({*COMMANDS.values(), *RUN_OPTIONS.values()}))
def test_what_a_hint_names_exists(hint: str) -> None:
    for typed in _WORDS.findall(hint):
        command, rest = found(typed.split())
        assert command is not _RAMET or rest == ["--version"], typed
        assert not getattr(command, "commands", None) or command is _RAMET, typed
        own = rest[: rest.index("--")] if "--" in rest else rest
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in own if word.startswith("-")} <= options, typed
    run, _ = found(["run"])
    mentioned = set(re.findall(r"(?<![\w-])--[a-z]+", _WORDS.sub("", hint))) - {"--privileged"}
    assert mentioned <= {name for parameter in run.params for name in parameter.opts}
