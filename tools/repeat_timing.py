"""Repeat the tests that wait, race or measure beside busy processes: `tools/repeat_timing.py --runs 30`.

They are those with the marker `timing`, of whichever tier. Each run is a pytest of its own, one test after
another, beside `--busy` processes that only compute. Ends with 1 when a run failed; what failed is printed,
with how often, and each run's output is in `build/timing/`. Further words are handed to pytest: a path, `-k`.
A run of all that is marked, without further words, is a line in docs/internals/test-runs.md.
"""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import run_log

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "build" / "timing"
_RUN_LIMIT_S = 1800


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep `count` processes computing inside; they end with the block, or with this process."""
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(1_000_000))"
    running = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def run_once(number: int, words: list[str]) -> tuple[str, int]:
    """One run: what pytest printed, and its exit code."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        "-m",
        "timing and not soak",
        *words,
    ]
    log = OUTPUT / f"run-{number:02}.log"
    with log.open("wb") as file:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=_RUN_LIMIT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    return log.read_text(errors="replace"), code


def main() -> int:
    """Carry out the words of the command line."""
    parser = argparse.ArgumentParser(description="Repeat the tests marked `timing` beside busy processes.")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--busy", type=int, default=2, help="processes that compute meanwhile (default 2)")
    asked, words = parser.parse_known_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    failures: collections.Counter[str] = collections.Counter()
    with busy(asked.busy):
        for number in range(1, asked.runs + 1):
            began = time.monotonic()
            result = run_log.read(*run_once(number, words))
            failures.update(result.failed_tests)
            took = time.monotonic() - began
            counts = f"{result.passed} passed, {result.failed} failed, {result.skipped} skipped"
            print(f"run {number}: {counts} ({took:.0f} s)", flush=True)
            if not words:
                run_log.append(f"`timing` beside {asked.busy} busy processes", result, took)
    for name, count in failures.most_common():
        print(f"failed {count} of {asked.runs}: {name}")
    print(
        f"{asked.runs} runs beside {asked.busy} busy processes: {'some failed' if failures else 'all green'}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
