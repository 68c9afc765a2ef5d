"""Waiting for a program's UNIX socket."""

from __future__ import annotations

from pathlib import Path


def listening(socket: Path) -> bool:
    """Whether it can be connected to: `__SO_ACCEPTCON` in the kernel's table. Its file is there sooner."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(row[-1] == str(socket) and int(row[3], 16) & 0x10000 for row in rows)
