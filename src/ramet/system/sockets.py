"""Unix sockets by a directory and a short name, which no path's length limits."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ramet.system import forked


def listen(directory_fd: int, name: str) -> socket.socket:
    """Make a listening UNIX socket `name` in the directory, mode 0600 by the caller's umask.

    An older socket is replaced. Bound through `/proc/self/fd`, so that any directory fits the 108 bytes of
    unix(7)'s `sun_path`. A VMM that inherits the socket can be connected to from this moment on: nobody has
    to wait for a socket to appear.
    """
    try:
        os.unlink(name, dir_fd=directory_fd)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"/proc/self/fd/{directory_fd}/{name}")
        listener.listen(4)
    except OSError:
        listener.close()
        raise
    return listener


def connect(directory: Path, name: str) -> socket.socket:
    """Connect to the UNIX socket `name` in `directory`, of any path length, without blocking.

    Raises `BlockingIOError` when the listener's queue is full, as a hung VMM leaves it; another `OSError`
    when nobody listens.
    """
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    forked.keep_socket_from_children(connection)
    connection.setblocking(False)
    try:
        connection.connect(f"/proc/self/fd/{directory_fd}/{name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory_fd)
    return connection
