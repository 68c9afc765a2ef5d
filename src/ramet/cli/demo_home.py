"""The demo's home: temporary, beside the image cache (so that images can be linked), gone at the end.

Its name holds the process that owns it. What a killed demo left behind, running VMMs included, is removed by
the next one.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ramet import config
from ramet.errors import RametError, UnavailableError
from ramet.host import processes
from ramet.host.files import remove_tree
from ramet.model.record import ProcessRef

_NAME = re.compile(r"demo-(?P<pid>\d+)-(?P<started>\d+)-\w+", re.ASCII)


@asynccontextmanager
async def temporary_home() -> AsyncIterator[Path]:
    """An empty directory for a home. Removed when the block ends, in whatever way.

    Raises `UnavailableError` when the cache can't be written.
    """
    parent = config.cache_directory()
    me = processes.this_process()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        await remove_abandoned(parent)
        home = Path(tempfile.mkdtemp(prefix=f"demo-{me.pid}-{me.started}-", dir=parent))
    except OSError as error:
        raise UnavailableError(
            f"the cache {parent} can't be used: {error.strerror}",
            hint="set RAMET_CACHE to a directory of yours",
        ) from error
    try:
        yield home
    finally:
        remove_tree(home)


async def remove_abandoned(parent: Path) -> None:
    """Remove the homes in `parent` whose demo doesn't live any more."""
    from ramet.engine.host import Host

    for home in parent.glob("demo-*"):
        match = _NAME.fullmatch(home.name)
        if match is None:
            continue
        owner = ProcessRef(int(match["pid"]), int(match["started"]), processes.boot_id())
        if processes.is_alive(owner):
            continue
        try:
            async with Host(home):
                pass  # opening a home removes the instances whose owner is dead
            remove_tree(home)
        except (RametError, OSError):
            pass  # the next demo tries again
