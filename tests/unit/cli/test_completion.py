"""Completion in bash, zsh and fish: what is offered, silently, quickly, and without a home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ramet.cli import completion
from ramet.paths import Home
from ramet.store.records import Store
from tests.support.shell import COMMAND, Shell, run_command
from tests.support.stored_homes import record


def complete(ramet: Shell, line: str, shell: str = "bash") -> subprocess.CompletedProcess[bytes]:
    """Ask for what can follow `line`, as the scripts of Typer do."""
    words = line.split(" ")
    environment = {
        **ramet.environment,
        "_RAMET_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    return run_command([], environment)


def offered(ramet: Shell, line: str) -> list[str]:
    done = complete(ramet, line)
    assert done.stderr == b""
    return done.stdout.decode().split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ramet pau", ["pause"]),
        ("ramet snapshot comp", ["compress"]),
        ("ramet run ", ["builtin", "probe", "bare"]),
        ("ramet run --driver ", ["auto", "firecracker", "qemu", "cloud-hypervisor"]),
        ("ramet run --accel k", ["kvm"]),
        ("ramet run --memory 2", ["256M", "2G"]),
        ("ramet run --label ", ["team=a"]),
        ("ramet demo --memory 1", ["1G"]),
        ("ramet inspect se", ["second"]),
        ("ramet stats fi", ["first"]),
        ("ramet rm ", ["first", "second"]),
        ("ramet rm first ", ["second"]),
        ("ramet ps --filter state=st", ["state=standby", "state=stopped"]),
        ("ramet ps --filter tea", ["team=a"]),
        ("ramet fork first/", ["first/aaaa1111", "first/base"]),
        ("ramet snapshot rm gone/base gone/", ["gone/first"]),
        ("ramet snapshot ls s", ["second"]),
        ("ramet snapshot compress --level 1", ["1", *map(str, range(10, 20))]),
        ("ramet rewind first ", ["aaaa1111", "base"]),
        ("ramet exec -e RAMET_HO", ["RAMET_HOME"]),
        ("ramet fork --req", ["--require-shared"]),
        ("ramet snapshot import ", []),
    ],
)
def test_the_values_that_are_offered(ramet: Shell, captured: Home, line: str, words: list[str]) -> None:
    assert offered(ramet, line) == words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_format(ramet: Shell, stored: Home, shell: str) -> None:
    done = complete(ramet, "ramet inspect ", shell)
    assert done.stderr == b""
    assert {
        "bash": "first\nsecond\n",
        "zsh": """_arguments '*: :(("first":"stopped"\n"second":"stopped"))'\n""",
        "fish": "first\tstopped\nsecond\tstopped\n",
    }[shell] == done.stdout.decode()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_completes_in_it(
    ramet: Shell, stored: Home, tmp_path: Path, shell: str
) -> None:
    """In the shells that are here: bash nearly everywhere."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell}")
    (tmp_path / "bin").mkdir()
    launcher = tmp_path / "bin" / "ramet"
    launcher.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    launcher.chmod(0o755)
    environment = {
        **ramet.environment,
        "PATH": f"{launcher.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    script = subprocess.run(
        COMMAND,
        env={**environment, "_RAMET_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    ask = {
        "bash": "COMP_WORDS=(ramet inspect se); COMP_CWORD=2; _ramet_completion ramet; echo ${COMPREPLY[@]}",
        "zsh": "words=(ramet inspect se); CURRENT=3; _arguments() { print -r -- $1 }; _ramet_completion",
        "fish": "complete -C 'ramet inspect se'",
    }[shell]
    before = "compdef() { :; }\n" if shell == "zsh" else ""
    done = subprocess.run(
        [program, "-c", f"{before}{script}\n{ask}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert re.search(r"\bsecond\b", done.stdout), done
    assert "first" not in done.stdout


@pytest.mark.parametrize("line", ["ramet inspect ", "ramet fork ", "ramet ps --filter ", "ramet nosuch x "])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_silent_and_makes_no_home(ramet: Shell, tmp_path: Path, line: str, shell: str) -> None:
    ramet.environment |= {"RAMET_HOME": str(tmp_path / "home"), "RAMET_CACHE": str(tmp_path / "cache")}
    assert complete(ramet, line, shell).stderr == b""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"no database", b""])
def test_a_damaged_database_is_silent(ramet: Shell, stored: Home, damage: bytes) -> None:
    stored.database.write_bytes(damage)
    assert offered(ramet, "ramet inspect ") == []
    assert offered(ramet, "ramet run b") == ["builtin", "bare"]


def test_a_fault_in_completion_is_silent(ramet: Shell) -> None:
    environment = {
        **ramet.environment,
        "_RAMET_COMPLETE": "complete_bash",
        "COMP_WORDS": "ramet run b",
        "COMP_CWORD": "nonsense",
    }
    done = run_command([], environment)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_only_plain_words_are_offered(monkeypatch: pytest.MonkeyPatch, home: Path, stored: Home) -> None:
    """Zsh evaluates what it is given."""
    import msgspec

    store = Store(stored.database)
    row = record("third", "dddd55556666")
    store.add(
        [msgspec.structs.replace(row, labels={"x": "$(touch it)", "y": "a'b", "z": "a:b", "k": "plain"})]
    )
    store.close()
    monkeypatch.setenv("RAMET_HOME", str(home))
    assert completion.complete_label("") == [("k=plain", "label"), ("team=a", "label")]
    store = Store(stored.database)
    store.add([record("$(touch it)", "eeee77778888")])
    store.close()
    assert completion.complete_reference("eeee") == [("eeee77778888", "")]
    assert completion.complete_reference("dddd") == [("dddd55556666", "third")]


def test_an_empty_variable_asks_for_no_completion(ramet: Shell, stored: Home) -> None:
    done = run_command(["ps", "-a"], {**ramet.environment, "_RAMET_COMPLETE": ""})
    assert done.returncode == 0
    assert b"NAME" in done.stdout


def test_the_constants_are_those_of_the_engine() -> None:
    from ramet.engine.drivers import ACCELERATORS, installed_drivers
    from ramet.images.resolve import ALIASES, IMAGE_NAMES
    from ramet.memory.compressed import HIGHEST_LEVEL, LOWEST_LEVEL
    from ramet.model.lifecycle import State

    assert set(completion.IMAGES) == {*IMAGE_NAMES, *ALIASES}
    assert set(completion.DRIVERS) == {"auto", *(driver.name for driver in installed_drivers())}
    assert set(completion.ACCELERATORS) == set(ACCELERATORS)
    assert (completion.LEVELS[0], completion.LEVELS[-1]) == (LOWEST_LEVEL, HIGHEST_LEVEL)
    assert set(completion.STATES) <= set(State)


def test_completion_loads_no_engine_and_no_rich(ramet: Shell, stored: Home) -> None:
    code = (
        "import sys\n"
        "from ramet.cli import main\n"
        "code = main.main()\n"
        "heavy = {'rich', 'anyio', 'asyncio', 'ramet.engine', 'ramet.api.host', 'ramet.drivers'}\n"
        "print([name for name in heavy if sys.modules.get(name)], file=sys.stderr)\n"
    )
    environment = {
        **ramet.environment,
        "_RAMET_COMPLETE": "complete_zsh",
        "_TYPER_COMPLETE_ARGS": "ramet fork fi",
    }
    done: Any = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "first" in done.stdout
    assert done.stderr == "[]\n"
