"""Every name that a test patches in one of ramet's modules is read from that module.

A module that has imported the name from there keeps what it has. Such a patch changes nothing, and its test
may pass all the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ramet

_PACKAGE = Path(ramet.__file__).parent
_TESTS = Path(__file__).parents[2]


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in _PACKAGE.rglob("*.py"):
        parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_bytes())
    return found


def imported(tree: ast.Module) -> dict[str, str]:
    """What each imported name of a module stands for, dotted."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname is not None}
            names |= {
                top: top for alias in node.names if alias.asname is None for top in [alias.name.split(".")[0]]
            }
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """The dotted name that an expression stands for, if its first word is imported."""
    if isinstance(node, ast.Attribute):
        of = dotted(node.value, names)
        return of and f"{of}.{node.attr}"
    return names.get(node.id) if isinstance(node, ast.Name) else None


@cache
def read() -> frozenset[tuple[str, str]]:
    """Every (module, name) that code of ramet looks up when it runs: in itself, or in a module by name."""
    found = set()
    for module, tree in modules().items():
        names = imported(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found.add((module, node.id))
            elif isinstance(node, ast.Attribute) and (of := dotted(node.value, names)) in modules():
                found.add((str(of), node.attr))
    return frozenset(found)


def patched(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """The line, module and name of each patch of a name in one of ramet's modules. Names that are put
    together when the test runs aren't seen.
    """
    names = imported(tree)
    for node in ast.walk(tree):
        match node:
            case (
                ast.Call(func=ast.Attribute(attr="setattr"), args=[ast.Constant(value=str(target)), *_])
                | ast.Tuple(elts=[ast.Constant(value=str(target)), *_])
            ):
                module, _, name = target.rpartition(".")
            case ast.Call(
                func=ast.Attribute(attr="setattr" | "object") | ast.Name(id="setattr"),
                args=[of, ast.Constant(value=str(name)), *_],
            ):
                module = dotted(of, names) or ""
            case _:
                continue
        if module in modules() and f"{module}.{name}" not in modules():
            yield node.lineno, module, name


def test_each_is_read() -> None:
    count, unread = 0, []
    for path in sorted(_TESTS.rglob("*.py")):
        source = path.read_bytes()
        if not any(word in source for word in (b"setattr", b".object", b'"ramet.')):
            continue  # saves a second: nothing of what `patched` looks for
        for line, module, name in patched(ast.parse(source)):
            count += 1
            if (module, name) not in read():
                unread.append(f"{path.relative_to(_TESTS.parent)}:{line}: {module}.{name}")
    assert unread == []
    assert count > 50


@pytest.mark.parametrize(
    "patch",
    [
        'monkeypatch.setattr("ramet.engine.capture.overlays.freeze_disks", None)',
        'monkeypatch.setattr(overlays, "freeze_disks", None)',
        'setattr(overlays, "freeze_disks", None)',
        'patch.object(overlays, "no_such_name", None)',
    ],
)
def test_a_name_that_only_others_read_is_noticed(patch: str) -> None:
    tree = ast.parse(f"from ramet.engine.capture import overlays\n{patch}")
    ((_, module, name),) = patched(tree)
    assert (module, name) not in read()
