"""The program that waits for the end of a ramet process that owns guests. Standard library only.

Run by `owners`: `python -I -S owner_watcher.py PIDFD HOME DEVICE INODE WORD...`. When the process behind
PIDFD has ended, this process becomes WORD..., which cleans up in HOME. It doesn't if that directory no longer
exists, or if another process has cleaned up since. While it waits it holds nothing but the pidfd.

Processes that end together, such as a training job's, leave a watcher each, and one cleaning is enough for
all. So each watcher first requests a cleaning, by the file `cleaning.todo`, and then waits for its turn, the
lock on `cleaning.lock`. If the request is gone when the turn comes, another process began to clean after the
request, and has ended. A cleaner that is killed leaves `cleaning.doing`, and the next one cleans again.
"""

import os
import select
import sys

LOCK = "cleaning.lock"
TODO = "cleaning.todo"
DOING = "cleaning.doing"
LOG = "cleaning.log"
LOG_LIMIT_BYTES = 64 * 1024
TURN_LIMIT_S = 2.0
"""A cleaning that takes longer than this isn't waited for."""
_AGAIN_S = 0.02


def _wait_for(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll():
        pass


def _is_still(home: str, device: int, inode: int) -> bool:
    try:
        status = os.stat(home)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (device, inode)


def _is_to_be_done(home: str) -> bool:
    """Tell whether this process is to clean.

    It then has the lock, if the lock could be had, and keeps it when it becomes another program.
    """
    import fcntl
    import time

    try:
        os.close(os.open(os.path.join(home, TODO), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        lock = os.open(os.path.join(home, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return True  # a full disk: then each cleans for itself
    deadline = time.monotonic() + TURN_LIMIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if time.monotonic() > deadline:
                return True
            time.sleep(_AGAIN_S)
    if not any(os.path.exists(os.path.join(home, name)) for name in (TODO, DOING)):
        return False
    try:
        os.replace(os.path.join(home, TODO), os.path.join(home, DOING))
    except OSError:
        pass  # there is what another one was killed at
    os.set_inheritable(lock, True)
    return True


def note(home: str, text: str) -> None:
    """Add a line to the home's log of cleanings, which stays small."""
    import time

    path = os.path.join(home, LOG)
    try:
        if os.stat(path).st_size > LOG_LIMIT_BYTES:
            os.replace(path, path + ".1")
    except OSError:
        pass  # there is none yet, or it grows a line longer
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n"
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(log, os.fsencode(line))
        finally:
            os.close(log)
    except OSError:
        pass  # no other process to tell


def main(argv: list[str]) -> int:
    """0: there was nothing to do. 1: it can't be done; the home's log says why."""
    pidfd, home, device, inode, *words = argv
    _wait_for(int(pidfd))
    os.close(int(pidfd))
    if not _is_still(home, int(device), int(inode)) or not _is_to_be_done(home):
        return 0
    try:
        os.execv(words[0], words)
    except OSError as error:
        note(home, f"what killed ramet processes left can't be removed: {words[0]}: {error.strerror}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
