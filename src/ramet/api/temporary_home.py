"""The demo's home: temporary, next to the image cache (so that images can be linked), gone at the end.

Its name holds the process that owns it. The home of a killed demo, running VMMs included, is removed by the
next demo.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ramet import config
from ramet.api.host import Host
from ramet.errors import RametError, UnavailableError
from ramet.model.record import ProcessRef
from ramet.paths import Home
from ramet.store.records import Store
from ramet.system import liveness, process_ref
from ramet.system.files import remove_tree
from ramet.system.filesystems import shared_filesystem

_NAME = re.compile(r"demo-(?P<owner>\d+-\d+-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-\d+)-\w+", re.ASCII)
_OLD_NAME = re.compile(r"demo-(?P<pid>\d+)-(?P<started>\d+)-\w+", re.ASCII)
"""The name in an older ramet, without the boot: it means the present boot."""


@asynccontextmanager
async def temporary_home() -> AsyncIterator[Path]:
    """Make an empty directory for a home, and remove it at the end of the block, also after an error.

    Raises `UnavailableError` when the cache can't be written.
    """
    parent = _parent()
    me = process_ref.as_name(process_ref.this_process())
    try:
        parent.mkdir(parents=True, exist_ok=True)
        await remove_abandoned(parent)
        home = Path(tempfile.mkdtemp(prefix=f"demo-{me}-", dir=parent))
    except OSError as error:
        raise UnavailableError(
            f"the cache {parent} can't be used: {error.strerror}",
            hint="set RAMET_CACHE to a directory of yours",
        ) from error
    try:
        yield home
    finally:
        remove_tree(home)


def _parent() -> Path:
    """Return the directory of the image cache, unless no instance can be kept there."""
    cache = config.cache_directory()
    return cache if shared_filesystem(cache) is None else Path(tempfile.gettempdir())


async def remove_abandoned(parent: Path) -> None:
    """Remove the homes in `parent` whose demo has ended."""
    for home in parent.glob("demo-*"):
        owner = _owner(home.name)
        if owner is None or liveness.is_alive(owner):
            continue
        try:
            if not liveness.is_dead(owner):
                # It may have been made before the machine was restarted: its database knows.
                database = Home(home).database
                if database.exists():
                    Store(database).close()
                if not liveness.is_dead(owner):
                    continue
            async with Host(home):
                pass  # opening a home removes the instances whose owner is dead
            remove_tree(home)
        except (RametError, OSError):
            pass  # the next demo tries again


def _owner(name: str) -> ProcessRef | None:
    if (match := _NAME.fullmatch(name)) is not None:
        return process_ref.from_name(match["owner"])
    if (match := _OLD_NAME.fullmatch(name)) is not None:
        return ProcessRef(int(match["pid"]), int(match["started"]), process_ref.boot_id())
    return None
