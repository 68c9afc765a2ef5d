"""Tests that wait or measure are marked `timing`, so that they are repeated beside busy processes.

Held here for tests without a VM, which are cheap enough to repeat; those with one are marked where waiting or
racing is what they are about.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.support.copied_packages import ROOT

WAITS = {
    *("sleep", "wait_until", "wait_for", "move_on_after", "fail_after"),
    *("monotonic", "perf_counter", "process_time", "thread_time"),
}
MARKS = ("timing", "deep", "alone")


def names_in(node: ast.AST) -> Iterator[str]:
    """Every name and attribute below `node`."""
    for inner in ast.walk(node):
        match inner:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name


def test_what_waits_is_marked() -> None:
    unmarked = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text()
        if "mark.vm" in source:
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
                marked = any(
                    mark in ast.unparse(decorator) for decorator in node.decorator_list for mark in MARKS
                )
                if not marked and WAITS.intersection(names_in(node)):
                    unmarked.append(f"{path.relative_to(ROOT)}::{node.name}")
    assert unmarked == []


def test_what_is_measured_alone_is_deep() -> None:
    """`make test` runs nothing alone: a worker would wait for the others, and they for it."""
    shallow = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text()
        if "mark.alone" not in source:
            continue
        module = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
        of_all = "".join(ast.unparse(node) for node in module if "pytestmark" in ast.unparse(node))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                marks = of_all + "".join(ast.unparse(decorator) for decorator in node.decorator_list)
                if node.name.startswith("test") and "mark.alone" in marks and "mark.deep" not in marks:
                    shallow.append(f"{path.relative_to(ROOT)}::{node.name}")
    assert shallow == []
