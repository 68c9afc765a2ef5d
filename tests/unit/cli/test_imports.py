"""The command line's import rule names every module there is: a new room isn't open to it by oversight."""

from __future__ import annotations

import tomllib
from pathlib import Path

import ramet

_PACKAGE = Path(ramet.__file__).parent
_ALLOWED = {"api", "client", "config", "errors", "model", "progress", "service", "text", "units", "version"}
_ABOVE = {"__main__", "cli", "server", "testing"}


def test_every_other_module_is_forbidden_to_the_command_line() -> None:
    settings = tomllib.loads((_PACKAGE.parents[1] / "pyproject.toml").read_text())
    [contract] = [
        contract
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract.get("source_modules") == ["ramet.cli"]
    ]
    assert "ignore_imports" not in contract
    modules = {path.stem for path in _PACKAGE.glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in _PACKAGE.glob("*/__init__.py")}
    forbidden = {name.removeprefix("ramet.") for name in contract["forbidden_modules"]}
    assert forbidden == modules - _ALLOWED - _ABOVE
