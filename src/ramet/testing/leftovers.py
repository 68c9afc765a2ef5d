"""Processes that a test has left running."""

from __future__ import annotations

from pathlib import Path


def living_in(directory: Path) -> list[int]:
    """Pids of the processes that work anywhere below `directory`."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink().is_relative_to(directory):
                    pids.append(int(entry.name))
            except OSError:
                continue  # ended meanwhile, or another user's: not a test's
    return pids
