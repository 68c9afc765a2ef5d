"""Repeat the tests that wait, race or measure beside busy processes: `tools/repeat_timing.py --runs 30`.

They are those with the marker `timing` that aren't `deep`. Each run is a pytest of its own, one test after
another, beside `--busy` processes that only compute. Ends with 1 when a run failed; what failed is printed,
with how often, and each run's output is in `build/timing/`. Further words are handed to pytest: a path, `-k`.
"""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "build" / "timing"
_RUN_LIMIT_S = 1800
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_SUMMARY = re.compile(r"^(?:=+ )?(\d+ (?:passed|failed|skipped|error).*)$", re.MULTILINE)


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


def run_once(number: int, words: list[str]) -> tuple[int, str]:
    """One run: pytest's exit code and what it printed."""
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
        "timing and not deep",
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
    return code, log.read_text(errors="replace")


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
            code, output = run_once(number, words)
            summary = _SUMMARY.findall(output)
            failed = _FAILED.findall(output) or ([] if code == 0 else [f"pytest, exit code {code}"])
            failures.update(failed)
            took = time.monotonic() - began
            print(
                f"run {number}: {summary[-1] if summary else f'exit code {code}'} ({took:.0f} s)", flush=True
            )
    for name, count in failures.most_common():
        print(f"failed {count} of {asked.runs}: {name}")
    print(
        f"{asked.runs} runs beside {asked.busy} busy processes: {'some failed' if failures else 'all green'}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
