"""Runs the programs in `examples/`, and compares what they print with what is recorded beside them.

`examples/NAME.out` has the output of an example. Transcripts of pages are run by `tests.support.transcripts`.

    python -m tools.examples                       run all, say what differs
    python -m tools.examples --record first_fork   run one, and write down what it prints
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
EXAMPLES: Final = ROOT / "examples"
LIMIT_S: Final = 240

_PYTHON: Final = (sys.executable, "-W", "error")
_PYTEST: Final = (*_PYTHON, "-m", "pytest", "-n", "0", "-v", "--no-header", "-p", "no:cacheprovider")
PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = {
    **{name: (*_PYTHON, f"examples/{name}.py") for name in ("first_fork", "branch_and_keep", "best_of_n")},
    "warm_python": (*_PYTHON, "examples/warm_python.py"),
    "database_per_test": (*_PYTEST, "examples/database_per_test"),
}


def run_program(name: str, home: Path) -> str:
    """Run an example, and return what it prints. Raises `RuntimeError` with its output if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # An example that is itself a run of pytest has its own options, not those of the run that tests it.
    surroundings = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        PROGRAMS[name],
        cwd=ROOT,
        env={**surroundings, "RAMET_HOME": str(home), "PATH": path, "COLUMNS": "80", "NO_COLOR": "1"},
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
    names = [word for word in words if word != "--record"] or [*PROGRAMS]
    outputs = {name: _output(name) for name in names}
    if "--record" in words:
        for name, output in outputs.items():
            recorded(name).write_text(output)
        return 0
    differing = [
        name for name in names if normalised(outputs[name]) != normalised(recorded(name).read_text())
    ]
    for name in differing:
        print(f"{name} prints something else than what is recorded")
    return 1 if differing else 0


def _output(name: str) -> str:
    with tempfile.TemporaryDirectory(prefix="ramet-examples-") as directory:
        return run_program(name, Path(directory))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
