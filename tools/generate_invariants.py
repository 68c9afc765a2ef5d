"""The lists of tests in docs/concepts/invariants.md, and tests/INDEX.md: both read from the tests' source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = "docs/concepts/invariants.md"
INDEX: Final = "tests/INDEX.md"
INVARIANTS: Final = tuple(f"I{number}" for number in range(1, 10))
_SECTION: Final = re.compile(r"(<!-- tests of (I\d) -->\n).*?(<!-- end -->)", re.DOTALL)
# Fork, exec and run are in nearly every file.
_VERBS: Final = (
    *("pause", "resume", "rewind", "standby", "restore", "template", "stop", "start", "wait", "keep"),
    *("snapshot", "export", "import_snapshot", "verify", "compress", "decompress", "detach", "logs", "stats"),
)
_GROUPS: Final = ("unit", "vm", "contract", "adversarial", "endurance", "platform", "benchmarks")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def sources() -> dict[Path, ast.Module]:
    """The test files by their paths from the root."""
    return {path: _parsed(path) for path in _files()}


def _files() -> list[Path]:
    return [file.relative_to(ROOT) for file in sorted((ROOT / "tests").rglob("test_*.py"))]


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_bytes())


def tests(tree: ast.Module) -> Iterator[tuple[str, list[ast.expr], Function]]:
    """Each test function: its name behind its class's; the marks of file, class and test; its node."""
    marks: list[ast.expr] = []
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="pytestmark")], value=value):
                marks = value.elts if isinstance(value, ast.List) else [value]
    for node in tree.body:
        if isinstance(node, Function) and node.name.startswith("test"):
            yield node.name, [*marks, *node.decorator_list], node
        elif isinstance(node, ast.ClassDef):
            of_class = [*marks, *node.decorator_list]
            for inner in node.body:
                if isinstance(inner, Function) and inner.name.startswith("test"):
                    yield f"{node.name}::{inner.name}", [*of_class, *inner.decorator_list], inner


class Proof(NamedTuple):
    """A test that is marked `proves`. `is_deep`: not in the merge tier."""

    path: Path
    name: str
    is_deep: bool


def proofs() -> dict[str, list[Proof]]:
    """The tests by what their marker `proves` names."""
    found: dict[str, list[Proof]] = {name: [] for name in INVARIANTS}
    for path in _files():
        if b"proves(" not in (ROOT / path).read_bytes():
            continue
        for name, marks, _ in tests(_parsed(path)):
            is_deep = any(re.search(r"mark\.(deep|soak)\b", ast.unparse(mark)) for mark in marks)
            for mark in marks:
                match mark:
                    case ast.Call(func=ast.Attribute(attr="proves"), args=args):
                        for argument in args:
                            found.setdefault(ast.literal_eval(argument), []).append(
                                Proof(path, name, is_deep)
                            )
    return found


def page() -> str:
    """`docs/concepts/invariants.md`: its own text with the lists anew."""
    proved = proofs()

    def section(match: re.Match[str]) -> str:
        lines = ["Shown by:", ""]
        lines += [f"- [`{proof.path}::{proof.name}`](../../{proof.path})" for proof in proved[match[2]]]
        return match[1] + "\n".join(lines) + "\n" + match[3]

    return _SECTION.sub(section, (ROOT / PAGE).read_text())


def index() -> str:
    """`tests/INDEX.md`."""
    lines = [
        "# Index of the tests",
        "",
        "Written by `python tools/generate.py` from the tests' source.",
        "A line is the first sentence of the file; [README.md](README.md) says how tests are run.",
        "",
        "## By verb",
        "",
        "Files with a test that calls the verb, or is named for it.",
        "",
        "| Verb | Files |",
        "| --- | --- |",
    ]
    for verb in _VERBS:
        files = (f"`{path.relative_to('tests').with_suffix('')}`" for path in _files_with(verb))
        lines.append(f"| {verb} | {', '.join(files)} |")
    for group in _GROUPS:
        folders = sorted({path.parent for path in sources() if path.parts[1] == group})
        lines += ["", f"## {group}", "", _first_line(Path("tests", group, "__init__.py"))]
        for folder in folders:
            if folder != Path("tests", group):
                lines += ["", f"### {folder.relative_to('tests')}", ""]
                lines.append(_first_line(folder / "__init__.py"))
            lines += ["", *(f"- {_link(path)}: {_first_line(path)}" for path in _in(folder))]
    return "\n".join(lines) + "\n"


def _in(folder: Path) -> list[Path]:
    return [path for path in sources() if path.parent == folder]


def _link(path: Path) -> str:
    return f"[{path.relative_to('tests')}]({path.relative_to('tests')})"


def _first_line(path: Path) -> str:
    text = ast.get_docstring(_parsed(path)) or ""
    return " ".join(text.partition("\n\n")[0].split()) or path.stem.removeprefix("test_").replace("_", " ")


def _files_with(verb: str) -> list[Path]:
    return [path for path, verbs in _verbs().items() if verb in verbs]


@cache
def _verbs() -> dict[Path, set[str]]:
    """For each file the verbs that a test is named for, calls on a handle, or gives to the command."""
    return {
        path: {word for name, _, test in tests(tree) for word in _words(name, test)}
        for path, tree in sources().items()
    }


def _words(name: str, test: Function) -> Iterator[str]:
    yield from name.split("::")[-1].split("_")
    for node in ast.walk(test):
        match node:
            case ast.Await(value=ast.Call(func=ast.Attribute(attr=attribute))):
                yield attribute
            case ast.Call(args=[ast.Constant(value=str(word)), *_]):
                yield word


TARGETS: Final = {PAGE: page, INDEX: index}
