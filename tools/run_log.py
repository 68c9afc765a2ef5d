"""docs/internals/test-runs.md: a line for each run of tests that was counted, appended as the run ends."""

from __future__ import annotations

import datetime
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
FILE: Final = ROOT / "docs" / "internals" / "test-runs.md"
_HEAD: Final = """\
# Runs of the tests, counted

`tools/repeat_tests.py` and `tools/repeat_timing.py` append one line per run, failed runs included.
A `+` behind a commit means that not all changes were committed.

| when (UTC) | commit | what | passed | failed | skipped | seconds | failed tests |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
_COUNT: Final = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")
_SUMMARY: Final = re.compile(r"^(?:=+ )?((?:\d+ \w+(?:, )?)+ in [\d.]+s.*)$", re.MULTILINE)
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """What a run's output says, over all pytests in it. Errors of fixtures count as failed."""

    passed: int
    failed: int
    skipped: int
    failed_tests: tuple[str, ...]


def read(output: str, code: int) -> Run:
    """Count a run. One that fails without a failed test (a lint, a time limit) is one failure by its exit
    code.
    """
    counts = {"passed": 0, "failed": 0, "skipped": 0, "error": 0}
    for line in _SUMMARY.findall(output):
        for number, kind in _COUNT.findall(line):
            counts[kind.removesuffix("s") if kind.startswith("error") else kind] += int(number)
    names = tuple(dict.fromkeys(_FAILED.findall(output)))
    failed = counts["failed"] + counts["error"]
    if code != 0 and failed == 0:
        failed, names = 1, (*names, f"exit code {code}")
    return Run(counts["passed"], failed, counts["skipped"], names)


def append(what: str, run: Run, seconds: float, *, file: Path = FILE, root: Path = ROOT) -> None:
    """Append the run's line, and the page's head before the first."""
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    names = ", ".join(name.replace("|", "\\|") for name in run.failed_tests) or "none"
    fields = (when, commit(root), what, run.passed, run.failed, run.skipped, f"{seconds:.0f}", names)
    with file.open("a") as page:
        if page.tell() == 0:
            page.write(_HEAD)
        page.write(f"| {' | '.join(map(str, fields))} |\n")


def commit(root: Path = ROOT) -> str:
    """The commit that is checked out; `+` for changes, this page's own aside."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else "?"

    changed = git("status", "--porcelain", "--", ".", f":!{FILE.relative_to(ROOT)}")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
