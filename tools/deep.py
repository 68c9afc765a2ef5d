"""The deep tier (`make test-deep`): all of it, some of its parts, or those that a change calls for.

    python -m tools.deep               all; when it is green, tests/deep-base names the commit
    python -m tools.deep crash wheel   these parts
    python -m tools.deep --changed     the parts whose paths changed since the commit in tests/deep-base
    python -m tools.deep --ci BEGAN    what continuous integration runs: the seed's case, then those parts

The exit code is 1 when a test failed. `BEGAN` is when continuous integration began, by /proc/uptime: no part
is begun after minute 30 of that, and one that runs at minute 44 is ended, which is not a failure. What a part
that was ended had made is removed.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.deep_parts import PARTS, SEED_CASE, SIDE_BY_SIDE, Part
from tools.leftovers import TAG, Leftovers

from ramet import config

ROOT: Final = Path(__file__).parent.parent
BASE: Final = "tests/deep-base"
FAILED: Final = "RAMET_TESTS_FAILED"
"""Names the file for the ids of failed tests (tests/side_by_side.py)."""
LAST_BEGIN_S: Final = 30 * 60.0
LAST_END_S: Final = 44 * 60.0
_GRACE_S: Final = 40.0
"""For fixtures to take down what they have made, once a run is asked to end."""
_NO_TESTS: Final = 5


@dataclass(frozen=True)
class Outcome:
    """How a run of pytest ended: `ended` when its time was up; `failed` are tests that had failed by then."""

    code: int
    failed: tuple[str, ...] = ()
    ended: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing failed. A run that was ended may have got to nothing at all."""
        return not self.failed and (self.ended or self.code in (0, _NO_TESTS))


def uptime_s() -> float:
    """Seconds since this machine's start, which nobody sets."""
    return float(Path("/proc/uptime").read_text().split()[0])


def run(words: Sequence[str], *, limit_s: float | None = None, root: Path = ROOT) -> Outcome:
    """Run a command in a process group of its own, with what it prints on this process's outputs.

    After `limit_s` it is interrupted, as by Ctrl-C; a little later its group is killed, and what it made
    removed.
    """
    tag = secrets.token_hex(8)
    leftovers = Leftovers(config.cache_directory(), tag)
    with tempfile.TemporaryDirectory(prefix="ramet-deep-") as directory:
        failed = Path(directory, "failed")
        process = subprocess.Popen(
            words,
            cwd=root,
            env={**os.environ, TAG: tag, FAILED: os.fspath(failed)},
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        ended, names = False, None
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            # A test that is interrupted may count as failed: a task group wraps KeyboardInterrupt.
            ended, names = True, _lines(failed)
            code = _end(process)
        except BaseException:
            _end(process)
            print_all(leftovers.remove())
            raise
        if ended:
            print_all(leftovers.remove())
        if names is None:
            names = _lines(failed)
    return Outcome(code, tuple(dict.fromkeys(names)), ended)


def _lines(file: Path) -> list[str]:
    """Return a file's lines; none when it doesn't exist."""
    return file.read_text().splitlines() if file.exists() else []


def _end(process: subprocess.Popen[bytes]) -> int:
    """Interrupt the group; kill what is left of it after a while."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return process.wait()


def print_all(lines: Sequence[str]) -> None:
    """With the tool's name before each, at once: pytest's words are in the same stream."""
    for line in lines:
        print(f"deep: {line}", flush=True)


def git(*words: str, root: Path = ROOT) -> str | None:
    """What git prints, or nothing where it fails: no repository, no such commit, no git."""
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def changed_since_base(root: Path = ROOT) -> list[str] | None:
    """The files that differ from the commit in `BASE`, or `None` when that can't be told.

    Committed or not; both names of a file that was moved.
    """
    try:
        base = (root / BASE).read_text().strip()
    except FileNotFoundError:
        return None
    if not base or git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}", root=root) is None:
        return None
    differ = git("diff", "--name-only", "--no-renames", "-z", base, root=root)
    new = git("ls-files", "--others", "--exclude-standard", "-z", root=root)
    if differ is None or new is None:
        return None
    return sorted({path for path in f"{differ}{new}".split("\0") if path})


def called_for(parts: Sequence[Part], changed: Sequence[str] | None) -> list[Part]:
    """Those whose paths have changed; all of them when nobody knows."""
    return [part for part in parts if changed is None or part.called_for_by(changed)]


def run_parts(parts: Sequence[Part], *, began_s: float | None = None, root: Path = ROOT) -> bool:
    """One after another, within the minutes of continuous integration if that began at `began_s`, which don't
    keep the seed's case from being begun. Whether all that was run is green.
    """
    green = True
    report = []
    for part in parts:
        now_s = uptime_s()
        if began_s is not None and part is not SEED_CASE and now_s - began_s > LAST_BEGIN_S:
            report.append(f"{part.name}: left out ({part.minutes:g} minutes), it is too late")
            continue
        if not prepare(part, root=root):
            green = False
            report.append(f"{part.name}: FAILED, {' '.join(part.before)} did")
            continue
        limit_s = None if began_s is None else max(1.0, began_s + LAST_END_S - _GRACE_S - uptime_s())
        print_all([f"{part.name} begins, about {part.minutes:g} minutes"])
        outcome = run((sys.executable, "-m", "pytest", *part.pytest_words()), limit_s=limit_s, root=root)
        took = f"{uptime_s() - now_s:.0f} s"
        if not outcome.ok:
            green = False
            why = ", ".join(outcome.failed) or f"exit code {outcome.code}"
            report.append(f"{part.name}: FAILED after {took}: {why}")
        elif outcome.ended:
            report.append(f"{part.name}: ended after {took}, its rest left out; nothing had failed")
        else:
            report.append(f"{part.name}: green in {took}")
    print_all(report)
    return green


def prepare(part: Part, *, root: Path = ROOT) -> bool:
    """Make what its tests want to find and can't make. Whether that is there."""
    done = part.before and subprocess.run(part.before, cwd=root, stdin=subprocess.DEVNULL, check=False)
    return not done or done.returncode == 0


def run_all(root: Path = ROOT) -> bool:
    """All parts: what can be beside others in one run of pytest, then what is to be alone. Whether
    it is green.
    """
    began = time.monotonic()
    prepared = all(prepare(part, root=root) for part in PARTS)
    pytest = (sys.executable, "-m", "pytest")
    together = run((*pytest, *SIDE_BY_SIDE, "-m", "deep and not alone"), root=root)
    [alone] = [part for part in PARTS if part.alone]
    apart = run((*pytest, *alone.pytest_words()), root=root)
    green = prepared and together.ok and apart.ok
    print_all([f"the whole tier in {time.monotonic() - began:.0f} s: {'green' if green else 'FAILED'}"])
    if green:
        print_all([set_base(root)])
    return green


def set_base(root: Path = ROOT) -> str:
    """Write the commit that was tested into `BASE`, unless something else was. Says what was done."""
    head, changes = git("rev-parse", "HEAD", root=root), git("status", "--porcelain", root=root)
    if head is None or changes is None:
        return f"{BASE} stays as it is: git can't say which commit this is"
    if changes:
        return f"{BASE} stays as it is: not everything that was tested is committed"
    (root / BASE).write_text(head)
    return f"{BASE} is {head.strip()} now: commit it"


def main(words: Sequence[str] | None = None) -> int:
    """Carry out the words of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.deep", description="Run the deep tier.")
    names = [part.name for part in PARTS]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--changed", action="store_true", help=f"parts called for by a change since {BASE}")
    parser.add_argument("--ci", type=float, metavar="BEGAN", help="those, in a run that began then")
    asked = parser.parse_args(words)
    if unknown := set(asked.parts) - set(names):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if asked.ci is None and not asked.changed:
        named = [part for part in PARTS if part.name in asked.parts]
        return 0 if (run_parts(named) if named else run_all()) else 1
    changed = changed_since_base()
    chosen = called_for(PARTS, changed)
    if changed is None:
        print_all([f"the commit in {BASE} isn't here: all parts count as changed"])
    if asked.ci is not None:
        chosen = [SEED_CASE, *(part for part in chosen if part is not SEED_CASE)]
    unchanged = [part.name for part in PARTS if part not in chosen]
    print_all([f"nothing changed for {', '.join(unchanged)}"] if unchanged else [])
    return 0 if run_parts(chosen, began_s=asked.ci) else 1


if __name__ == "__main__":
    sys.exit(main())
