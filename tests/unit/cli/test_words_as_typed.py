"""Words, names and paths that aren't UTF-8, and locales that aren't: bytes arrive as typed, JSON is UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ramet.cli.options import environment, pairs, without_separator
from ramet.errors import UsageError
from ramet.text import as_typed, encode_json, visible
from tests.platform.environments import surroundings
from tests.support.shell import COMMAND, LIMIT_S, Shell


class TestText:
    def test_what_is_no_text_is_shown_escaped(self) -> None:
        assert visible("é h\udcff\ud800") == "é h\\xff\\ud800"
        assert visible("plain") == "plain"

    def test_json_is_always_valid(self) -> None:
        document = {"k\udcfe": ["h\udcff", ("é", 1)], "n": None}
        assert json.loads(encode_json(document)) == {"k\\xfe": ["h\\xff", ["é", 1]], "n": None}
        assert encode_json({"é": "é"}) == '{"é":"é"}'.encode()

    def test_words_keep_their_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for typed in (b"\xe9", "é".encode(), b"a\xff b"):
            assert as_typed(os.fsdecode(typed)).encode("utf-8", "surrogateescape") == typed
        monkeypatch.setattr(os, "fsencode", lambda word: word.encode("latin-1"))
        assert as_typed("é") == "\udce9"
        assert environment(["V=é"]) == {"V": "\udce9"}
        assert without_separator(["--", "é"]) == ["\udce9"]

    def test_a_label_is_text(self) -> None:
        assert pairs(["k=é"], what="label") == {"k": "é"}
        with pytest.raises(UsageError, match=r"the label k=\\xff isn't text"):
            pairs(["k=\udcff"], what="label")


@pytest.fixture(scope="module")
def latin1() -> Iterator[dict[str, str]]:
    """The environment of a user with a Latin-1 locale."""
    with surroundings.locale("ISO-8859-1") as found:
        yield {**found.environment, "PYTHONUTF8": "0"}  # type: ignore[dict-item]


def run(shell: Shell, extra: dict[str, Any], *words: str | bytes, code: int = 0) -> bytes:
    base: dict[str, Any] = {**shell.environment, **extra}
    given = {name: value for name, value in base.items() if value is not None}
    done = subprocess.run(
        [*COMMAND, *words],
        env=given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == code, done
    assert b"Traceback" not in done.stderr
    return done.stdout


C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.vm
class TestLocales:
    SHOW = (b'echo "$V"; echo "$1"; pwd; id -un', b"sh")

    @pytest.mark.parametrize(
        "kind",
        ["latin1", *(pytest.param(kind, marks=pytest.mark.deep) for kind in ("C", "utf8", "ascii output"))],
    )
    def test_bytes_arrive_as_typed_and_come_back_as_they_are(
        self, guest: Shell, latin1: dict[str, str], kind: str
    ) -> None:
        extra = {
            "latin1": latin1,
            "C": C_LOCALE,
            "utf8": {"LC_ALL": "C.UTF-8"},
            "ascii output": {"PYTHONIOENCODING": "ascii:strict"},
        }[kind]
        for typed in (b"\xe9 \xff\xfe", "é日本".encode()):
            directory = b"/tmp/" + typed
            guest("exec", "box", "mkdir", "-p", os.fsdecode(directory))
            words = ("exec", "-e", b"V=" + typed, "--cwd", directory, "box", "sh", "-c", *self.SHOW, typed)
            assert run(guest, extra, *words) == b"".join(
                line + b"\n" for line in (typed, typed, directory, b"root")
            )

    def test_a_variable_from_here(self, guest: Shell, latin1: dict[str, str]) -> None:
        extra: dict[str, Any] = {**latin1, "V": os.fsdecode(b"\xe9")}
        assert run(guest, extra, "exec", "-e", "V", "box", "sh", "-c", "echo $V") == b"\xe9\n"

    def test_json_is_utf8_in_every_locale(self, guest: Shell, latin1: dict[str, str]) -> None:
        for extra in (latin1, C_LOCALE, {"PYTHONIOENCODING": "latin-1"}):
            said = run(guest, extra, "exec", "--json", "box", "printf", "\\303\\251")
            assert json.loads(said.decode("utf-8"))["stdout"] == "é"

    def test_tables_and_trees_do_without_unicode(self, guest: Shell) -> None:
        for words in (["ps"], ["tree"], ["inspect", "box"], ["doctor"], ["--help"], ["stats"]):
            said = run(guest, C_LOCALE, *words)
            assert said.isascii()
            assert said

    def test_a_label_that_is_no_text_is_refused_before_anything_is_made(self, guest: Shell) -> None:
        before = guest("ps", "-aq").stdout
        run(guest, {"LC_ALL": "C.UTF-8"}, "run", "-d", "--label", b"k=\xff", "builtin", code=2)
        run(guest, {"LC_ALL": "C.UTF-8"}, "run", "-d", "--name", b"n\xff", "builtin", code=2)
        assert guest("ps", "-aq").stdout == before


@pytest.mark.vm
def test_a_home_and_files_whose_names_are_no_text(homes: Path) -> None:
    """And have spaces, quotes, commas and newlines: the main job, and nothing is left."""
    with tempfile.TemporaryDirectory(dir=homes, prefix="odd-") as parent:
        home = Path(parent, os.fsdecode(b"h\xff , 'a\"\nb"))
        shell = Shell(home)
        made = shell.json("run", "-d", "--json", "--name", "a", "builtin")
        assert "h\\xff , 'a\"\nb" in made["directory"]
        shell("template", "a")
        (fork,) = shell.json("fork", "--json", "--name", "f", "a")["forks"]
        assert "h\\xff" in fork["directory"]
        assert shell("exec", "f", "echo", "hi").stdout == b"hi\n"
        shell("standby", "f")
        shell("restore", "f")
        shell("snapshot", "create", "--name", "s", "f")
        archive = Path(parent, os.fsdecode(b"x\xfe \ny"))
        assert shell("snapshot", "export", "f/s", str(archive)).stdout == os.fsencode(archive) + b"\n"
        assert shell.json("snapshot", "export", "--json", "f/s", f"{archive}2")["file"] == visible(
            f"{archive}2"
        )
        shell("snapshot", "import", "--name", "t", str(archive))
        for words in (
            ["ps"],
            ["tree"],
            ["inspect", "f"],
            ["stats"],
            ["snapshot", "ls"],
            ["doctor"],
            ["pool"],
        ):
            shell(*words)
            shell(*words, "--json")
        shell("rm", "-f", "f")
        shell("snapshot", "rm", "f/s", "t")
        shell("rm", "a")
        assert list((home / "instances").iterdir()) == list((home / "snapshots").iterdir()) == []


@pytest.mark.vm
def test_programs_and_a_cache_whose_names_are_no_text(ramet: Shell, homes: Path) -> None:
    with tempfile.TemporaryDirectory(dir=homes, prefix="odd-") as parent:
        odd = Path(parent, os.fsdecode(b"q\xff 1"))
        odd.mkdir()
        qemu = ramet.json("doctor", "--json")
        assert qemu["ok"]
        from ramet.drivers.qemu.driver import Qemu

        (odd / "qemu").symlink_to(Qemu()._program.path())
        ramet.environment |= {"RAMET_QEMU": str(odd / "qemu"), "RAMET_CACHE": str(odd / "cache")}
        for image in ("images", "kernels"):
            (odd / "cache").mkdir(exist_ok=True)
            (odd / "cache" / image).symlink_to(homes.parent / image)
        assert ramet("run", "--rm", "builtin", "echo", "hi").stdout == b"hi\n"
        missing = {"RAMET_QEMU": str(odd / "missing")}
        done = subprocess.run(
            [*COMMAND, "run", "builtin"],
            env={**ramet.environment, **missing},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 5
        assert b"q\\xff 1/missing, which isn't there" in done.stderr
