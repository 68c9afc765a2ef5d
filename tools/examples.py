"""Runs the examples and the transcripts of pages, and compares what they print with what is recorded.

An example is a program in `examples/`; `examples/NAME.out` has its output. A transcript is the fenced
`console` blocks of a page, which run in order in one shell. Lines that begin with `$ ` are commands, lines
that begin with `> ` continue a command, other lines are output.

    python -m tools.examples                      run all, say what differs
    python -m tools.examples --record             run all, and write down what they print
    python -m tools.examples --record first_fork docs/tutorial/first-fork.md
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
EXAMPLES: Final = ROOT / "examples"
LIMIT_S: Final = 240

_PYTHON: Final = (sys.executable, "-W", "error")
_PYTEST: Final = (*_PYTHON, "-m", "pytest", "-n", "0", "-v", "--no-header", "-p", "no:cacheprovider")
PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = {
    **{name: (*_PYTHON, f"examples/{name}.py") for name in ("first_fork", "branch_and_keep", "best_of_n")},
    "database_per_test": (*_PYTEST, "examples/database_per_test"),
}

_CONSOLE: Final = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_STEP: Final = "\x1e"


class Step(NamedTuple):
    """A command of a transcript, as it is typed, and what it prints."""

    command: str
    output: str


def environment(home: Path) -> dict[str, str]:
    """The environment of a program that uses the home `home` and this checkout's `ramet`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "RAMET_HOME": str(home), "PATH": path, "COLUMNS": "100", "NO_COLOR": "1"}


def run_program(name: str, home: Path) -> str:
    """Run an example, and return what it prints. Raises `RuntimeError` with its output if it fails."""
    done = subprocess.run(
        PROGRAMS[name],
        cwd=ROOT,
        env={**environment(home), "COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"examples/{name} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def recorded(name: str) -> Path:
    """The file with an example's output."""
    return EXAMPLES / f"{name}.out"


def pages() -> list[Path]:
    """The pages that have a transcript."""
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in candidates if _CONSOLE.search(path.read_text())]


def steps(page: str) -> list[Step]:
    """The commands of a page's transcript, in order, with the output that the page shows."""
    return [step for block in _CONSOLE.findall(page) for step in _steps_of(block)]


def _steps_of(block: str) -> Iterator[Step]:
    command: list[str] = []
    output: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            if command:
                yield Step("\n".join(command), _joined(output))
            command, output = [line[2:]], []
        elif line.startswith("> ") and not output:
            command.append(line[2:])
        else:
            output.append(line)
    if command:
        yield Step("\n".join(command), _joined(output))


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def run_steps(commands: list[str], home: Path) -> list[str]:
    """Run commands in one shell, and return what each prints on both streams."""
    script = "exec 2>&1\n" + "".join(f"printf '{_STEP}'\n{command}\n" for command in commands)
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=home,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.stdout.split(_STEP)[1:]


def with_outputs(page: str, outputs: list[str]) -> str:
    """A page with other outputs in its transcript."""
    remaining = iter(outputs)

    def block(match: re.Match[str]) -> str:
        text = ""
        for step in _steps_of(match[1]):
            first, *others = step.command.split("\n")
            text += _joined([f"$ {first}", *(f"> {line}" for line in others)])
            text += "".join(f"{line.rstrip()}\n" for line in next(remaining).splitlines())
        return f"```console\n{text}```"

    return _CONSOLE.sub(block, page)


_VARIES: Final = (
    (re.compile(r"[ \t]+$", re.MULTILINE), ""),
    (re.compile(r" {2,}"), "  "),
    (re.compile(r"\b\d+(\.\d+)? ?(ms|s|m|h|B|KiB|MiB|GiB|bytes)\b"), r"# \2"),
    (re.compile(r"# (s|m|h)$", re.MULTILINE), "# s"),  # an age
    (re.compile(r"\bqemu/(tcg|kvm)\b"), "qemu/#"),
    (re.compile(r"\b(PASSED|passed|FAILED)( +\[|.*=)"), r"\1\2"),
    (re.compile(r"=+ (\d+ passed) in .*? =+"), r"= \1 ="),
)
_NAMED: Final = re.compile(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{8,64}\b|(?<=inode )\d+|(?<=data )[0-9a-f]{8}\b")


def normalised(output: str) -> str:
    """Output without what differs between runs: times, sizes, ids, inodes. Equal ids stay equal."""
    seen: dict[str, str] = {}
    output = _NAMED.sub(lambda match: seen.setdefault(match[0], f"<{len(seen) + 1}>"), output)
    for pattern, replacement in _VARIES:
        output = pattern.sub(replacement, output)
    return output


def main(words: list[str]) -> int:
    """Run what is named, or all. Returns 1 if something differs and isn't to be recorded."""
    record = "--record" in words
    names = [word for word in words if word != "--record"]
    wanted = names or [*PROGRAMS, *(str(page.relative_to(ROOT)) for page in pages())]
    differing = [name for name in wanted if not _is_same(name, record=record)]
    for name in differing:
        print(f"{name} prints something else than what is recorded")
    return 1 if differing else 0


def _is_same(name: str, *, record: bool) -> bool:
    with tempfile.TemporaryDirectory(prefix="ramet-examples-") as directory:
        home = Path(directory)
        if name in PROGRAMS:
            target, output = recorded(name), run_program(name, home)
            shown = target.read_text() if target.exists() else ""
            text = output
        else:
            target = ROOT / name
            page = target.read_text()
            outputs = run_steps([step.command for step in steps(page)], home)
            output, shown = "".join(outputs), "".join(step.output for step in steps(page))
            text = with_outputs(page, outputs)
    if record:
        target.write_text(text)
        return True
    return normalised(output) == normalised(shown)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
