"""Writes what is made from the sources: `ramet.sync` and reference pages. With `--check` it only compares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate_docs
import generate_examples
import generate_invariants
import generate_rooms
import generate_sync

TARGETS: dict[str, Callable[[], str]] = {
    generate_sync.TARGET: generate_sync.generate,
    **generate_docs.TARGETS,
    **generate_rooms.TARGETS,
    **generate_invariants.TARGETS,
    **generate_examples.TARGETS,
}


def main(words: list[str]) -> int:
    """0 when everything is up to date, or has been written; 1 when `--check` found something stale."""
    if words not in ([], ["--check"]):
        print("usage: generate.py [--check]", file=sys.stderr)
        return 2
    stale = [name for name, make in TARGETS.items() if not _same(generate_sync.ROOT / name, make())]
    for name in stale:
        if words:
            print(f"{name} is stale: run `python tools/generate.py`", file=sys.stderr)
        else:
            (generate_sync.ROOT / name).write_text(TARGETS[name]())
            print(f"wrote {name}")
    return 1 if words and stale else 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
