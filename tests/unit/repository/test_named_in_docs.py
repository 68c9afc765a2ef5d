"""Methods, commands and files that the documents name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import ramet
import ramet.sync
from ramet.cli.main import app
from tests.support.markdown import prose

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_HANDLES = {name: getattr(ramet, name) for name in ("Host", "VM", "Snapshot", "Forks", "Process")}


def _code() -> Iterator[tuple[str, str]]:
    """Each piece of code in the documents' prose, with its place."""
    for path in DOCUMENTS:
        for number, line in prose(path.read_text()):
            for match in re.finditer(r"`([^`]+)`", line):
                yield f"{path.relative_to(ROOT)}:{number}", match[1]


def test_methods_and_names_exist() -> None:
    missing = []
    for place, code in _code():
        for name, part in re.findall(r"\b(Host|VM|Snapshot|Forks|Process)\.([a-z]\w+)", code):
            if not hasattr(_HANDLES[name], part):
                missing.append(f"{place}: {name}.{part}")
        for name in re.findall(r"\bramet\.([A-Z]\w+)", code):
            if name not in ramet.__all__:
                missing.append(f"{place}: ramet.{name}")
    assert not missing, "\n".join(missing)


def _commands(command: Any, path: str = "ramet") -> Iterator[str]:
    yield path
    for name, child in (getattr(command, "commands", None) or {}).items():
        yield from _commands(child, f"{path} {name}")


def test_commands_exist() -> None:
    known = set(_commands(typer.main.get_command(app)))
    groups = {path for path in known if any(other.startswith(f"{path} ") for other in known)}
    missing = []
    for place, code in _code():
        words = re.match(r"ramet ([a-z]+)(?: ([a-z]+))?(?![\w.-])", code)
        if words is None:
            continue
        path = f"ramet {words[1]}"
        if path not in known or (path in groups and words[2] and f"{path} {words[2]}" not in known):
            missing.append(f"{place}: {code}")
    assert not missing, "\n".join(missing)


def test_files_of_the_project_exist() -> None:
    missing = [
        f"{place}: {code}"
        for place, code in _code()
        if re.fullmatch(r"(src|tests|tools|benchmarks|docs|examples)/[\w./-]+", code)
        and not (ROOT / code).exists()
    ]
    assert not missing, "\n".join(missing)
