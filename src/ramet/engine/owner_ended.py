"""The cleanup of a home after a killed ramet process: the next process would do the same later.

Run in place of `ramet.system.owner_watcher`, when the process that it waited for has ended. Guests end first;
all that takes longer, even imports, comes after that.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

from ramet.errors import RametError
from ramet.model.record import ProcessRef, Record
from ramet.paths import Home
from ramet.store.records import Store
from ramet.system import launching, owners
from ramet.system.liveness import is_dead, open_pidfd
from ramet.system.owner_watcher import DOING, note

_PAUSES_S: Final = (0.0, 0.2, 1.0, 5.0, 30.0)
"""Before each try: another process may hold a lock, or the disk be full."""


def end_guests(home: Path) -> int:
    """Remove the records of instances whose owner has ended, and end their VMMs, without waiting for that.

    Returns their number. Processes that no record names, and directories, are left to the next process that
    opens the home. Raises `StoreError`.
    """
    store = Store(Home(home).database)
    try:
        owned = [row for row in store.all() if row.owner is not None]
        dead = {
            owner for owner in {record.owner for record in owned} if owner is not None and _has_ended(owner)
        }
        doomed = [record.id for record in owned if record.owner in dead and _may_end(record)]
        # Asked again inside: one may have been detached since, by the process that then ended.
        removed = store.remove_all(doomed, only_if=lambda row: row.owner in dead)
    finally:
        store.close()
    for record in removed:
        if record.vmm is not None:
            _signal(record.vmm.process, signal.SIGKILL)
    return len(removed)


def _has_ended(process: ProcessRef) -> bool:
    try:
        return is_dead(process)
    except RametError:
        return False  # it can't be looked at: later, perhaps


def _may_end(record: Record) -> bool:
    """Tell whether this process can end the record's VMM: only then is the record removed."""
    return record.vmm is None or _signal(record.vmm.process, 0)


def _signal(process: ProcessRef, number: int) -> bool:
    """Signal a process. False when it can't be seen, or is another user's."""
    try:
        pidfd = open_pidfd(process)
    except RametError:
        return False
    if pidfd is None:
        return True
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    finally:
        os.close(pidfd)
    return True


def clean(home: Path) -> str | None:
    """Undo everything else that killed processes left, as opening the home does.

    Returns None, or why some of it is still there.
    """
    import anyio

    from ramet.engine.recovery import open_home

    async def opened() -> None:
        async with AsyncExitStack() as exits:
            context = await open_home(Home(home.resolve()), "auto", exits)
            context.agents.close()

    try:
        anyio.run(opened)
        left = end_guests(home)
    except (RametError, OSError) as error:
        return str(error)
    return f"{left} instances were still there" if left else None


def main(home: str) -> None:
    """Clean up in `home`. Its log says what was done."""
    # Until now these were blocked. The watcher's reason holds here, too; programs started here get them.
    for number in owners.KEPT_OUT:
        signal.signal(number, lambda *_: None)
    launching.reset()
    owners.watch_nothing()
    place, ended = Path(home), 0
    try:
        with suppress(RametError, OSError):
            # `clean` does it, too, and names the obstacle.
            ended = end_guests(place)
        for pause_s in _PAUSES_S:
            time.sleep(pause_s)
            if (why := clean(place)) is None:
                break
    except Exception as error:
        note(home, f"what killed ramet processes left wasn't all removed: {type(error).__name__}: {error}")
        raise
    if why is not None:
        note(home, f"what killed ramet processes left wasn't all removed: {why}")
        return
    note(home, f"after ramet processes that had ended: {ended} instances removed")
    with suppress(OSError):
        # Who comes next cleans once too often, then.
        Path(home, DOING).unlink()


if __name__ == "__main__":
    main(sys.argv[1])
