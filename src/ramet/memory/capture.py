"""Write a mem-file that holds what a process sees: its base, with the pages that it changed laid over.

The process is paused meanwhile, and whoever ends it does so after the new file is published. Nothing that is
published is written to (I1): the result is a new inode, filled under a temporary name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ramet.host.files import duplicate_into, filesystem_errors, open_regular
from ramet.memory.mappings import FileIdentity, Mapping, find_mapping, identity_of
from ramet.memory.overlay import MemFile, publish_over
from ramet.memory.pagemap import Run, changed_runs, changed_runs_by_pagemap, changed_runs_by_scan
from ramet.memory.pages import LivePages

__all__ = [
    "FileIdentity",
    "Mapping",
    "MemFile",
    "Run",
    "changed_runs",
    "changed_runs_by_pagemap",
    "changed_runs_by_scan",
    "find_mapping",
    "identity_of",
    "write_mem_file",
]


def write_mem_file(base: Path, pid: int, runs: Sequence[Run], out: Path, *, mode: int = 0o600) -> MemFile:
    """Publish `out`: the content of `base` with the process's pages at `runs` over it. Zeros become holes.

    `base` is reflinked or sparsely copied and never written. `out` appears whole and durable, with `mode`; it
    may be the name of `base`, whose inode then lives on under its other names. `runs` come from
    `changed_runs`, and the process has been paused since.

    Raises `UnavailableError` when the kernel doesn't permit reading the process, `VmmError` when it has
    ended, `WrongStateError` when its memory isn't as listed any more, `UsageError` when a run lies outside
    `base`, `FilesystemError` for files. There is no `out` then, and nothing is left beside it.
    """
    what = f"the memory of process {pid} to {out}"
    with filesystem_errors("write", what), open_regular(base) as origin:
        size = os.fstat(origin).st_size
        pages = LivePages(pid, runs)
        return publish_over(out, pages, size, mode, lambda file: duplicate_into(origin, file), what)
