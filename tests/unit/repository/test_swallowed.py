"""An error of ramet's, of the system's or of a program's that ends in a clause which goes on: a comment there
says why nothing is lost by that, or the outcome is told.

Silence has cost guests their data: a stop that couldn't ask its guest, a clock that wasn't put right.
"""

from __future__ import annotations

import ast
import builtins
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import ramet
import ramet.errors

_ROOT = Path(ramet.__file__).parent
_GENERATED = {"sync.py"}
_OURS = {name for name, kind in vars(ramet.errors).items() if isinstance(kind, type)}
_SYSTEMS = {
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and (issubclass(kind, OSError) or kind in {Exception, BaseException})
}
# Each is an answer to the very question that was asked: there is nothing, it has ended, it is taken.
_ANSWERS = {
    "BlockingIOError",
    "ChildProcessError",
    "FileExistsError",
    "FileNotFoundError",
    "InterruptedError",
    "ProcessLookupError",
    "TimeoutError",
    "NotFoundError",
}
_WATCHED = (_OURS | _SYSTEMS) - _ANSWERS


def files() -> list[Path]:
    return sorted(path for path in _ROOT.rglob("*.py") if path.name not in _GENERATED)


def names_in(node: ast.expr | None) -> set[str]:
    if node is None:
        return {"BaseException"}
    return {
        part.attr if isinstance(part, ast.Attribute) else part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Name | ast.Attribute)
    }


def is_told(handler: ast.ExceptHandler) -> bool:
    """It does something: raises, returns an answer that the function's docstring explains, takes a note."""
    return not all(isinstance(statement, ast.Pass | ast.Continue) for statement in handler.body)


def silent(text: str) -> Iterator[tuple[int, int]]:
    """The first and the last line of each clause that swallows one of the watched errors."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            if names_in(node.type) & _WATCHED and not is_told(node):
                yield node.lineno, node.end_lineno or node.lineno
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and names_in(call.func) & {"suppress"}:
                    caught = set().union(*map(names_in, call.args))
                    if caught & _WATCHED:
                        yield node.lineno, node.body[0].end_lineno or node.lineno


def uncommented(text: str) -> list[int]:
    if not (clauses := list(silent(text))):
        return []
    comments = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith(("# noqa", "# type:"))
    }
    return [first for first, last in clauses if not comments & set(range(first - 1, last + 1))]


def test_a_clause_that_goes_on_says_why_nothing_is_lost() -> None:
    found = {str(path.relative_to(_ROOT)): uncommented(path.read_text()) for path in files()}
    assert len(found) > 100
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("clause", "is_found"),
    [
        ("try:\n    f()\nexcept RametError:\n    pass\n", True),
        ("try:\n    f()\nexcept RametError:\n    pass  # nothing is lost: it is asked again\n", False),
        ("try:\n    f()\nexcept RametError as error:\n    tell(error)\n", False),
        ("try:\n    f()\nexcept RametError as error:\n    pass\n", True),
        ("for x in y:\n    try:\n        f()\n    except (OSError, ValueError):\n        continue\n", True),
        ("try:\n    f()\nexcept FileNotFoundError:\n    pass\n", False),
        ("try:\n    f()\nexcept:\n    pass\n", True),
        ("try:\n    f()\nexcept errors.VmmError:\n    raise Other from None\n", False),
        ("with contextlib.suppress(OSError):\n    f()\n", True),
        ("with a, suppress(GuestError):\n    # told already\n    f()\n", False),
    ],
)
def test_the_lint_finds_what_it_is_for(clause: str, is_found: bool) -> None:
    assert bool(uncommented(clause)) is is_found
