"""The home's worker: work that outlives the command that found it.

One process a home, started when there is something to do, ending when there is nothing more. It compacts: a
capture whose delta is large gets a mem-file of its own, which later forks share instead of each holding the
delta. The old files stay until the manifest names the new one, and their inodes for as long as a fork has
them.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec

from ramet.engine.context import Context
from ramet.engine.manifest import Manifest, Memory, Part, read_manifest
from ramet.errors import LockBusyError, RametError
from ramet.host.files import TEMPORARY_PREFIX, write_durably
from ramet.host.locks import file_lock
from ramet.memory.delta import COMPACT_ABOVE_BYTES, compact
from ramet.memory.integrity import digest, facts_of
from ramet.model.lifecycle import State
from ramet.paths import MANIFEST_FILE, Home
from ramet.store.records import Store

_ANOTHER_S = 60.0
"""How long a worker waits for the one before it, which may have looked already where the new work is."""


def wants_compaction(manifest: Manifest) -> bool:
    """Whether its delta is so large that forks had better share it."""
    return manifest.memory.delta is not None and manifest.memory.delta_bytes > COMPACT_ABOVE_BYTES


def wake_for(context: Context, directory: Path) -> None:
    """Start the home's worker when there is something to do in that capture."""
    try:
        if wants_compaction(read_manifest(directory)):
            context.home.work_to_do.touch(mode=0o600)
            wake(context.home)
    except (RametError, OSError):
        pass  # the capture is good without


def wake(home: Home) -> None:
    """Start a worker for a home. It goes on when this process ends, and keeps out of others' way."""
    subprocess.Popen(
        [sys.executable, "-m", "ramet.engine.worker", str(home.root)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


async def work(home: Home) -> int:
    """Do what there is to do in a home, and return how many captures were compacted."""
    done = 0
    busy = LockBusyError("another worker is at work in this home")
    async with file_lock(home.worker_lock, wait_s=_ANOTHER_S, busy=busy):
        store = Store(home.database)
        try:
            home.work_to_do.unlink(missing_ok=True)
            for directory in list(_captures(home, store)):
                try:
                    done += compact_capture(directory)
                except (RametError, OSError):
                    continue  # removed meanwhile, or no room: it is good as it is
        finally:
            store.close()
    return done


def _captures(home: Home, store: Store) -> Iterator[Path]:
    """Where captures lie that others are made from. One in standby is restored, and then it is gone."""
    for record in store.all():
        if record.state is State.TEMPLATE and record.pending is None:
            yield home.instance(record.id)
    for row in store.snapshots.all():
        if row.is_published:
            yield home.snapshot(row.id)


def compact_capture(directory: Path) -> bool:
    """Give a capture a mem-file of its own, if its delta is large. False when it isn't.

    Raises `DamagedError`, `FilesystemError`: the capture is what it was then.
    """
    for left in directory.glob(f"{TEMPORARY_PREFIX}mem-*"):
        left.unlink(missing_ok=True)
    manifest = read_manifest(directory)
    if not wants_compaction(manifest):
        return False
    base, delta = manifest.memory.base, manifest.memory.delta
    assert delta is not None
    whole = f"mem-{secrets.token_hex(4)}"
    compact(directory / base, directory / delta, directory / whole, mode=manifest.parts[base].facts.mode)
    try:
        parts = {name: part for name, part in manifest.parts.items() if name not in (base, delta)}
        made = Part(facts=facts_of(directory / whole), digest=digest(directory / whole))
        compacted = msgspec.structs.replace(manifest, memory=Memory(base=whole), parts={whole: made, **parts})
        write_durably(directory / MANIFEST_FILE, compacted.encoded())
    except BaseException:
        (directory / whole).unlink(missing_ok=True)
        raise
    for name in (base, delta):
        (directory / name).unlink(missing_ok=True)
    return True


def main() -> None:
    """`python -m ramet.engine.worker HOME`."""
    os.nice(10)
    try:
        anyio.run(work, Home(Path(sys.argv[1])))
    except RametError as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
