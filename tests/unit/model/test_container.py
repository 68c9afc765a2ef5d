"""The main process that comes of an image's configuration and of what a user gives, as Docker has it."""

from __future__ import annotations

from typing import Any

import pytest

from ramet.errors import UsageError
from ramet.model.container import (
    DEFAULT_PATH,
    MOST_TEXT_BYTES,
    ImageConfig,
    MainProcess,
    main_process,
    signal_number,
)

BOTH = ImageConfig(entrypoint=("/entry", "--now"), cmd=("one", "two"))
ONLY_CMD = ImageConfig(cmd=("one", "two"))
ONLY_ENTRYPOINT = ImageConfig(entrypoint=("/entry",))
NOTHING = ImageConfig()


def made(config: ImageConfig, **given: Any) -> MainProcess:
    return main_process(config, "app", **given)


@pytest.mark.parametrize(
    ("config", "given", "argv"),
    [
        (BOTH, {}, ("/entry", "--now", "one", "two")),
        (BOTH, {"command": ["x", "-y"]}, ("/entry", "--now", "x", "-y")),
        (BOTH, {"command": []}, ("/entry", "--now", "one", "two")),
        (BOTH, {"entrypoint": ["/other"]}, ("/other",)),
        (BOTH, {"entrypoint": ["/other", "-a"], "command": ["x"]}, ("/other", "-a", "x")),
        (BOTH, {"entrypoint": [""], "command": ["x"]}, ("x",)),
        (BOTH, {"entrypoint": [], "command": ["x"]}, ("x",)),
        (ONLY_CMD, {}, ("one", "two")),
        (ONLY_CMD, {"command": ["x"]}, ("x",)),
        (ONLY_CMD, {"entrypoint": ["/other"]}, ("/other",)),
        (ONLY_ENTRYPOINT, {}, ("/entry",)),
        (ONLY_ENTRYPOINT, {"command": ["", "x"]}, ("/entry", "", "x")),
        (NOTHING, {"command": ["x"]}, ("x",)),
        (NOTHING, {"entrypoint": ["x"]}, ("x",)),
        (NOTHING, {"is_idle": True}, ()),
    ],
)
def test_what_is_run(config: ImageConfig, given: dict[str, Any], argv: tuple[str, ...]) -> None:
    assert made(config, **given).argv == argv


@pytest.mark.parametrize(
    ("config", "given"), [(NOTHING, {}), (BOTH, {"entrypoint": [""]}), (NOTHING, {"command": []})]
)
def test_nothing_to_run_names_the_image(config: ImageConfig, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the image app has no entrypoint and no command") as raised:
        made(config, **given)
    assert "--idle" in (raised.value.hint or "")


def test_the_environment_is_the_images_then_the_users_and_has_a_path() -> None:
    config = ImageConfig(cmd=("x",), env=("A=1", "B=2=3", "EMPTY=", "BARE", "=nameless"))
    assert made(config, env={"A": "9", "C": ""}).env == {
        "A": "9",
        "B": "2=3",
        "EMPTY": "",
        "BARE": "",
        "C": "",
        "PATH": DEFAULT_PATH,
    }
    assert made(ImageConfig(cmd=("x",), env=("PATH=/bin",))).env == {"PATH": "/bin"}
    assert made(ONLY_CMD, env={"PATH": ""}).env == {"PATH": ""}


@pytest.mark.parametrize(
    ("of_image", "given", "cwd"),
    [("", None, "/"), ("/srv", None, "/srv"), ("srv/app", None, "/srv/app"), ("/srv", "/tmp", "/tmp")],
)
def test_the_directory(of_image: str, given: str | None, cwd: str) -> None:
    assert made(ImageConfig(cmd=("x",), working_dir=of_image), workdir=given).cwd == cwd


def test_a_users_relative_directory_is_refused() -> None:
    with pytest.raises(UsageError, match="no absolute path"):
        made(ONLY_CMD, workdir="here")


def test_the_user() -> None:
    config = ImageConfig(cmd=("x",), user="app:staff")
    assert made(config).user == "app:staff"
    assert made(config, user="0").user == "0"
    assert made(config, user="").user == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("15", 15),
        (" SIGQUIT ", 3),
        ("64", 64),
        ("SIGRTMIN", 34),
        ("RTMIN+3", 37),
        ("SIGRTMIN+30", 64),
        ("SIGRTMAX", 64),
        ("SIGRTMAX-14", 50),
        ("SIGCLD", 17),
        ("SIGPOLL", 29),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65", "-1", "SIGNAL", "RTMIN+31", "RTMIN-1", "RTMAX+1", "1.5", "\u0661"]
)
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(UsageError, match="no signal"):
        signal_number(text)


def test_the_stop_signal_is_the_users_else_the_images_else_sigterm() -> None:
    config = ImageConfig(cmd=("x",), stop_signal="SIGQUIT")
    assert made(config).stop_signal == 3
    assert made(config, stop_signal="SIGUSR1").stop_signal == 10
    assert made(ONLY_CMD).stop_signal == 15
    assert made(ImageConfig(cmd=("x",), stop_signal="SIGNONSENSE")).stop_signal == 15
    with pytest.raises(UsageError, match="no signal"):
        made(config, stop_signal="SIGNONSENSE")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"command": ["a\0b"]}, "NUL"),
        ({"env": {"A": "\0"}}, "NUL"),
        ({"user": "a\0"}, "NUL"),
        ({"command": ["\udcff"]}, "UTF-8"),
        ({"env": {"BIG": "x" * MOST_TEXT_BYTES}}, "put long values into a file"),
    ],
)
def test_what_no_guest_can_be_given(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        made(ONLY_CMD, **given)
    assert words in raised.value.message + (raised.value.hint or "")
