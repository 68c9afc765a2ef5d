"""Checks that something belongs to another user of the machine, before anything is done about it.

A home may have instances of several users: its owner's, and root's, who has used `sudo` once.
"""

from __future__ import annotations

import os
import pwd
import signal
from pathlib import Path

from ramet.errors import UnavailableError
from ramet.model.record import ProcessRef
from ramet.system.liveness import local_pid, open_pidfd


def user_name(uid: int) -> str:
    """Return a user's name for messages."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def require_endable(process: ProcessRef, *, name: str) -> None:
    """Raise `UnavailableError` when this user may not end `process`, `UnseenError` when it can't be seen.

    `name` is the process's owner in messages. Does nothing when the process is dead.
    """
    pidfd = open_pidfd(process)
    if pidfd is None:
        return
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        owner = user_name(os.stat(f"/proc/{local_pid(process)}").st_uid)  # noqa: PTH116
        raise not_ours(name, owner) from error
    finally:
        os.close(pidfd)


def require_removable(directory: Path, *, name: str) -> None:
    """Raise `UnavailableError` when this user can't remove the content of `directory`.

    `name` is the directory's owner in messages. Does nothing when there is no directory.
    """
    try:
        owner = directory.lstat().st_uid
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise not_ours(name, user_name(directory.parent.lstat().st_uid)) from error
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        raise not_ours(name, user_name(owner))


def not_ours(name: str, owner: str) -> UnavailableError:
    """Make the error for a change of another user's things. Nothing was changed."""
    own_name = user_name(os.geteuid())
    if owner == own_name:
        return UnavailableError(
            f"{name} can't be changed: its directory isn't writable, though it is {owner}'s",
            hint="is its filesystem mounted read-only?",
        )
    return UnavailableError(
        f"{name} belongs to {owner}, and this is {own_name}", hint=f"run ramet as {owner}"
    )
