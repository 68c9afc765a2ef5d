"""Run `make test` several times: `tools/repeat_tests.py --runs 3`. Each run adds a line to test-runs.md.

Ends with 1 when a run failed. Each run's output is in `build/runs/`. Further words are what make is to make
instead of `test`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import run_log

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "build" / "runs"


def run_once(number: int, goals: list[str]) -> bool:
    """One run, said and kept. Whether it was green."""
    began = time.monotonic()
    log = OUTPUT / f"run-{number:02}.log"
    with log.open("wb") as file:
        done = subprocess.run(
            ["make", *goals],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    took = time.monotonic() - began
    result = run_log.read(log.read_text(errors="replace"), done.returncode)
    run_log.append(f"`make {' '.join(goals)}`", result, took)
    print(
        f"run {number}: {result.passed} passed, {result.failed} failed,"
        f" {result.skipped} skipped ({took:.0f} s)",
        flush=True,
    )
    for name in result.failed_tests:
        print(f"  {name}", flush=True)
    return done.returncode == 0


def main() -> int:
    """Carry out the words of the command line."""
    parser = argparse.ArgumentParser(description="Run `make test` several times, and keep a line of each.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("goals", nargs="*", default=["test"], help="what make is to make (default: test)")
    asked = parser.parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    green = [run_once(number, asked.goals) for number in range(1, asked.runs + 1)]
    print(f"{sum(green)} of {asked.runs} runs green")
    return 0 if all(green) else 1


if __name__ == "__main__":
    sys.exit(main())
