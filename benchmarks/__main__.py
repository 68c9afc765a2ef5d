"""Measure, and write what came out: `DIRECTORY/benchmarks/results.json`, plots beside it, and the page
`DIRECTORY/benchmarks.md`.

    python -m benchmarks                        # everything, at most ten minutes, into docs/internals/
    python -m benchmarks --quick                # few values, at most one minute, into build/
    python -m benchmarks --only latency depth   # some of it, into build/
    python -m benchmarks --page                 # measure nothing: page and plots from the last results.json

Exit code 1 when a benchmark failed; what was measured is written all the same. Ctrl-C leaves nothing behind,
and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import anyio

from benchmarks import plots
from benchmarks.catalogue import ALL, BY_NAME
from benchmarks.document import ROOT, Document, begin, read, write
from benchmarks.page import FINDINGS, render
from benchmarks.run import Benchmark, run_benchmarks, say

DATA = "benchmarks"
RESULTS = "results.json"
PAGE = "benchmarks.md"


def publish(document: Document, directory: Path) -> None:
    """Plots and page of that document."""
    drawn = plots.available()
    if drawn:
        plots.draw(document, directory / DATA)
    else:
        say("no plots: there is no matplotlib here (`make bench` installs it)")
    text = render(document, FINDINGS.read_text(), directory=DATA, pictures=drawn)
    (directory / PAGE).write_text(text)
    say(f"wrote {directory / PAGE}")


async def measure(words: list[str], benchmarks: list[Benchmark], *, quick: bool) -> Document:
    """A whole run."""
    started = time.monotonic()
    document = await begin(words, quick=quick)
    document.outcomes = await run_benchmarks(benchmarks, quick=quick)
    document.seconds = round(time.monotonic() - started, 1)
    return document


def main(words: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few values of everything")
    parser.add_argument("--only", nargs="+", choices=list(BY_NAME), metavar="NAME", help=", ".join(BY_NAME))
    parser.add_argument("--page", action="store_true", help="measure nothing, write page and plots anew")
    parser.add_argument(
        "--output", type=Path, metavar="DIRECTORY", help="default: docs/internals/, build/ for a part"
    )
    chosen = parser.parse_args(words)
    whole = not chosen.quick and not chosen.only
    directory = chosen.output or ROOT / ("docs/internals" if whole else "build")
    (directory / DATA).mkdir(parents=True, exist_ok=True)
    if chosen.page:
        publish(read(directory / DATA / RESULTS), directory)
        return 0
    # A CI that ends a job, or `timeout`, sends SIGTERM: that clears away, too.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    benchmarks = [BY_NAME[name] for name in dict.fromkeys(chosen.only)] if chosen.only else list(ALL)
    document = anyio.run(lambda: measure(words, benchmarks, quick=chosen.quick))
    write(directory / DATA / RESULTS, document)
    publish(document, directory)
    failed = [outcome.name for outcome in document.outcomes if outcome.failed]
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
