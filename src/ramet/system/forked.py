"""Descriptors that a forked child closes, because they are its parent's.

fork(2) without execve(2) copies every descriptor, O_CLOEXEC or not. A lock would stay held, a guest's only
port in use, and a resumer waiting, as long as the child lives, even if the parent was killed. So the child
closes these at once. Threads, event loops and their state aren't there in a child: a module that keeps such
things per process registers with `in_children`.
"""

from __future__ import annotations

import os
import socket
import weakref
from collections.abc import Callable

_descriptors: set[int] = set()
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def in_children(forget: Callable[[], object]) -> None:
    """Call `forget` in every child that is forked from now on, before anything else runs there."""
    os.register_at_fork(after_in_child=forget)


def keep_from_children(descriptor: int) -> int:
    """Have no forked child keep the descriptor open, and return it. Close it with `close`."""
    _descriptors.add(descriptor)
    return descriptor


def keep_socket_from_children(connection: socket.socket) -> None:
    """Have no forked child keep the socket open. It is closed as any socket is."""
    _sockets.add(connection)


def is_ours(descriptor: int) -> bool:
    """Tell whether the descriptor was kept from children in this process: a child may reuse its number."""
    return descriptor in _descriptors


def close(descriptor: int) -> None:
    """Close a descriptor that was kept from children. In a child nothing happens: it is closed there."""
    if descriptor in _descriptors:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _close_all() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
    for connection in list(_sockets):
        if (descriptor := connection.detach()) >= 0:
            os.close(descriptor)


in_children(_close_all)
