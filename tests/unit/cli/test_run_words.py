"""Everything after IMAGE is CMD, dashes included; options behind an image of ramet's own stay options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from ramet.cli.main import app
from ramet.cli.options import environment_files, without_separator
from ramet.errors import UsageError
from tests.support.shell import Shell


def parsed(*words: str) -> tuple[str, list[str], dict[str, Any]]:
    """IMAGE, CMD and the options that were given."""
    command: Any = typer.main.get_command(app)
    run = command.commands["run"]
    context = run.make_context("ramet run", list(words))
    defaults = {parameter.name: parameter.get_default(context) for parameter in run.params}
    given = dict(context.params)
    image, cmd = given.pop("image"), without_separator(given.pop("command"))
    return image, cmd, {name: value for name, value in given.items() if value != defaults[name] and value}


@pytest.mark.parametrize(
    ("words", "image", "command", "options"),
    [
        (["py", "-c", "print(1)"], "py", ["-c", "print(1)"], {}),
        (["py", "--help"], "py", ["--help"], {}),
        (["py", "--json", "--rm"], "py", ["--json", "--rm"], {}),
        (["py", "--", "-c", "x"], "py", ["-c", "x"], {}),
        (["py", "--", "--", "x"], "py", ["--", "x"], {}),
        (["py", "sh", "--", "-x"], "py", ["sh", "--", "-x"], {}),
        (["--rm", "py", "--rm"], "py", ["--rm"], {"remove": True}),
        (["--", "py", "--rm"], "py", ["--rm"], {}),
        (["py", "-"], "py", ["-"], {}),
        (["py", ""], "py", [""], {}),
        (["py"], "py", [], {}),
        (["-e", "A=b", "-u", "app", "py", "-e", "C"], "py", ["-e", "C"], {"env": ["A=b"], "user": "app"}),
        (["builtin", "--", "ls", "-l"], "builtin", ["ls", "-l"], {}),
        (["builtin", "ls", "-l", "--json"], "builtin", ["ls", "-l", "--json"], {}),
        (["builtin", "--json"], "builtin", [], {"json": True}),
        (["builtin", "--name", "x", "--rm"], "builtin", [], {"name": "x", "remove": True}),
        (["builtin", "--name", "x", "ls", "-l"], "builtin", ["ls", "-l"], {"name": "x"}),
        (["probe", "--rm", "--json", "--", "peek"], "probe", ["peek"], {"remove": True, "json": True}),
        (["--cpus", "2", "bare", "--rm"], "bare", [], {"cpus": 2, "remove": True}),
        (["builtin", "--", "--json"], "builtin", ["--json"], {}),
        (["builtin", "--name", "builtin", "builtin"], "builtin", ["builtin"], {"name": "builtin"}),
    ],
)
def test_words(words: list[str], image: str, command: list[str], options: dict[str, Any]) -> None:
    assert parsed(*words) == (image, command, options)


def test_wrong_options_are_named(ramet: Shell) -> None:
    assert b"--nosuch" in ramet("run", "--nosuch", "py", code=2).stderr
    assert b"--nosuch" in ramet("run", "builtin", "--nosuch", code=2).stderr
    assert b"IMAGE" in ramet("run", "--rm", code=2).stderr


class TestEnvironmentFiles:
    def test_docker_reads_them_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FROM_HERE", "here")
        monkeypatch.delenv("NOT_HERE", raising=False)
        first, second = tmp_path / "first", tmp_path / "second"
        first.write_bytes(b'\xef\xbb\xbf# a comment\n\nA=1\nB="q u"\n  C=x=y\nFROM_HERE\nNOT_HERE\nD=\n')
        second.write_bytes(b"A=2\r\n")
        assert environment_files([str(first), str(second)]) == {
            "A": "2",
            "B": '"q u"',
            "C": "x=y",
            "FROM_HERE": "here",
            "D": "",
        }

    @pytest.mark.parametrize("content", [b"=x\n", b"A B=x\n", b"A=\0\n", b"#" * (1 << 20) + b"#"])
    def test_wrong_ones_are_refused(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "file"
        file.write_bytes(content)
        with pytest.raises(UsageError, match="file"):
            environment_files([str(file)])
        with pytest.raises(UsageError, match="nosuch"):
            environment_files([str(tmp_path / "nosuch")])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--pull", "never", "nosuch:1"], 3, b"nosuch:1 isn't in this home"),
        (["--pull", "never", "nosuch:1", "true"], 125, b"nosuch:1 isn't in this home"),
        (["--pull", "sometimes", "nosuch"], 125, b"missing, never, always"),
        (["--platform", "linux/s390x", "nosuch"], 125, b"can't run here"),
        (["--platform", "linux", "nosuch"], 125, b"no platform"),
        (["-d", "--rootfs", "ram:", "nosuch"], 2, b"disk:20G"),
        (["-d", "--rootfs", "disk:1K", "nosuch"], 2, b"64.0 MiB"),
        (["-d", "--ca", "/nosuch.pem", "nosuch"], 1, b"/nosuch.pem"),
        (["-d", "--entrypoint", "sh", "builtin"], 2, b"no container image"),
        (["--idle", "nosuch", "sh"], 125, b"idle guest runs no command"),
        (["-d", "--workdir", "", "nosuch"], 2, b"workdir"),
    ],
)
def test_wrong_input_without_a_guest(ramet: Shell, words: list[str], code: int, message: bytes) -> None:
    done = ramet("run", *words, code=code)
    assert message in done.stderr
    assert done.stdout == b""


def test_certificates_are_checked_before_an_image_is_looked_for(ramet: Shell, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    for content, message in {
        b"": b"no certificate",
        b"0\x82\x01": b"openssl x509",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n": b"cut or damaged",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n": b"private key",
        b"x" * (1 << 20) + b"x": b"larger than",
    }.items():
        file.write_bytes(content)
        assert message in ramet("run", "-d", "--ca", str(file), "nosuch", code=2).stderr
