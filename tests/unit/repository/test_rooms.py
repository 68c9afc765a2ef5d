"""The rooms are as their READMEs say: each module is named in its room's, and what is named is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import ramet

PACKAGE = Path(ramet.__file__).parent
READMES = sorted(PACKAGE.rglob("README.md"))


def modules(room: Path) -> set[str]:
    """The names of the Python modules below a room."""
    return {path.stem for path in room.rglob("*.py") if path.stem != "__init__"}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_a_readme_names_the_modules_of_its_room(readme: Path) -> None:
    text = readme.read_text()
    unnamed = {name for name in modules(readme.parent) if not re.search(rf"\b{name}\b", text)}
    assert not unnamed, f"{readme} doesn't name them"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_a_module_that_a_readme_names_is_there(readme: Path) -> None:
    named = set(re.findall(r"`(?!tests/|tools/)(?:[a-z_]+/)*([a-z_0-9]+)\.py`", readme.read_text()))
    assert named <= modules(PACKAGE), f"{readme} names what isn't there"


def test_every_package_has_a_readme() -> None:
    packages = {path.parent for path in PACKAGE.glob("*/__init__.py")}
    assert packages == {readme.parent for readme in READMES if readme.parent in packages}


def test_no_module_takes_a_private_name_from_another() -> None:
    taken = [
        f"{path.relative_to(PACKAGE)}: {alias.name} of {node.module}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ramet")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert not taken
