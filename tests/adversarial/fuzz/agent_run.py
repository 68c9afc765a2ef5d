"""The agent's C under libFuzzer, AddressSanitizer and UBSan.

`python -m tests.adversarial.fuzz.agent_run --seconds 60` prints a report: executions, frames, crashes, the
edges and lines that were reached. What it learnt is kept in `build/fuzz` and used the next time; a crash's
input is left there too.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .corpus import DIRECTORY as CORPUS

SOURCES: Final = Path(__file__).parent / "agent"
WORK: Final = Path("build/fuzz")
INPUT_MAX_BYTES: Final = 1024
_PARTS: Final = "command|files|identity|main_process|port|pump|session|start|trust|user|wire"


@dataclass(frozen=True)
class Report:
    """What a run of the fuzzer found. `log` is what it said."""

    executions: int
    frames: int
    edges: int
    seconds: float
    crashed: bool
    log: str

    def text(self) -> str:
        """For people."""
        return (
            f"agent: {self.frames} frames in {self.executions} executions, "
            f"{'A CRASH' if self.crashed else '0 crashes'}, {self.seconds:.1f} s\n"
            f"agent: {self.edges} edges reached"
        )


def why_not() -> str | None:
    """What this machine lacks, or None."""
    if shutil.which("clang") is None or shutil.which("make") is None:
        return "no clang or no make on this machine"
    runtime = subprocess.run(
        ["clang", "-print-file-name=libclang_rt.fuzzer-x86_64.a"], capture_output=True, text=True, timeout=20
    )
    if "/" not in runtime.stdout:
        found = subprocess.run(
            ["clang", "-print-resource-dir"], capture_output=True, text=True, timeout=20
        ).stdout.strip()
        if not list(Path(found).glob("lib/*/libclang_rt.fuzzer*")):
            return "clang has no libFuzzer here (Debian: libclang-rt-14-dev)"
    return None


def build(program: Path, *variables: str) -> None:
    """Build the fuzz target as `program`. Raises `CalledProcessError`."""
    subprocess.run(
        ["make", "-s", "-C", SOURCES, f"OUT={program.absolute()}", *variables], check=True, timeout=300
    )


def run(program: Path, learnt: Path, *, seconds: float, seed: int = 0) -> Report:
    """Fuzz for so long, beginning from the seeds and what was learnt before."""
    learnt.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    finished = subprocess.run(
        [
            program.absolute(),
            f"-max_total_time={max(1, round(seconds))}",
            f"-max_len={INPUT_MAX_BYTES}",
            f"-seed={seed}",
            "-timeout=20",
            "-print_final_stats=1",
            f"-artifact_prefix={learnt.parent.absolute()}/",
            learnt.absolute(),
            CORPUS,
        ],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + 120,
        env=_environment(),
    )
    log = finished.stderr
    edges = re.findall(r"cov: (\d+)", log)
    return Report(
        executions=_number(r"number_of_executed_units: (\d+)", log),
        frames=_number(r"frames handled: (\d+)", log),
        edges=int(edges[-1]) if edges else 0,
        seconds=time.monotonic() - began,
        crashed=finished.returncode != 0,
        log=log,
    )


def replay(program: Path, inputs: list[Path]) -> subprocess.CompletedProcess[str]:
    """Run the target once on each input."""
    return subprocess.run(
        [program.absolute(), *(path.absolute() for path in inputs)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        env=_environment(),
    )


def lines_reached(directory: Path, inputs: list[Path]) -> str:
    """Per source file, the share of lines that these inputs reach, by gcov."""
    program = directory / "replay"
    build(program, "REPLAY=1", "CC=gcc")
    objects = Path(f"{program}.d").absolute()
    for old in objects.glob("*.gcda"):
        old.unlink()
    for at in range(0, len(inputs), 500):
        replay(program, inputs[at : at + 500])
    counted = subprocess.run(
        ["gcov", "-n", *sorted(objects.glob("*.gcda"))],
        capture_output=True,
        text=True,
        cwd=objects,
        timeout=60,
    )
    found = re.findall(rf"agent/({_PARTS})\.c'\nLines executed:([\d.]+)% of (\d+)", counted.stdout)
    return ", ".join(f"{name}.c {share}% of {lines}" for name, share, lines in sorted(found))


def _environment() -> dict[str, str]:
    # Memory of the child's side is given back by the simulation; a leak check at the end would add seconds.
    return {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=8"}


def _number(pattern: str, log: str) -> int:
    match = re.search(pattern, log)
    return int(match[1]) if match else 0


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        print(f"agent: not fuzzed: {reason}")
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    program, learnt = WORK / "agent-fuzzer", WORK / "learnt"
    build(program)
    report = run(program, learnt, seconds=options.seconds, seed=options.seed)
    print(report.text())
    if report.crashed:
        print(report.log[-6000:])
        return 1
    if shutil.which("gcc") and shutil.which("gcov"):
        print("agent: lines reached:", lines_reached(WORK, [*learnt.iterdir(), *CORPUS.iterdir()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
