"""The files of an instance that Cloud Hypervisor writes in a save, and reads in a load.

A VMM can write to its instance's directory, so links, FIFOs and files without end may lie there.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ramet.errors import DamagedError, VmmError, VmmTimeoutError
from ramet.model.record import Machine
from ramet.paths import MEM_FILE
from ramet.system.files import filesystem_errors, open_regular, remove_tree

LOADING: Final = "loading.tmp"
_SAVING: Final = "saving.{}.tmp"
"""Directories for a load and a save; forks get no copy of what a killed process left (`disk.clone`)."""
CHANGED: Final = "something has changed the instance's files: fork or restore from another capture"
"""The hint for files that aren't as they have to be."""


@contextmanager
def saving(instance: Path) -> Iterator[Path]:
    """Make a directory for a snapshot, and remove it at the end, unless the VMM may still write to it.

    Its name is new, because a request of a ramet process that died may still be carried out.
    """
    for left in instance.glob(_SAVING.format("*")):
        _remove(left)
    directory = instance / _SAVING.format(secrets.token_hex(4))
    with filesystem_errors("make", directory):
        directory.mkdir(mode=0o700)
    try:
        yield directory
    except VmmTimeoutError:
        raise  # the next save removes it
    except BaseException:
        _remove(directory)
        raise
    _remove(directory)


@contextmanager
def loading(instance: Path) -> Iterator[Path]:
    """Make the directory that a load reads, and remove it at the end."""
    directory = instance / LOADING
    _remove(directory)
    with filesystem_errors("make", directory):
        directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        _remove(directory)


def require_mem_file(directory: Path, machine: Machine) -> None:
    """Raise `VmmError` unless the mem-file in `directory` is exactly as long as the machine's RAM.

    Cloud Hypervisor maps a shorter file, and SIGBUS ends the VMM when its guest gets to the missing part.
    """
    path = directory / MEM_FILE
    try:
        with open_regular(path) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
    except OSError as error:
        raise VmmError(
            f"{path} can't be used as a mem-file: {error.strerror or error}", hint=CHANGED
        ) from error
    if size_bytes != machine.memory_bytes:
        raise VmmError(
            f"{path} has {size_bytes} bytes, and the machine {machine.memory_bytes} bytes of RAM",
            hint=CHANGED,
        )


def read(path: Path, most_bytes: int) -> bytes:
    """Read a whole file that a VMM wrote or was given.

    Raises `DamagedError`, also for a file of more than `most_bytes`.
    """
    try:
        with open_regular(path) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
            if size_bytes > most_bytes:
                raise DamagedError(f"{path} has {size_bytes} bytes, more than {most_bytes}")
            content = bytearray()
            while piece := os.read(descriptor, size_bytes + 1 - len(content)):
                content += piece
                if len(content) > size_bytes:
                    raise DamagedError(f"{path} grew while it was read")
            return bytes(content)
    except OSError as error:
        raise DamagedError(f"{path} can't be read: {error.strerror or error}") from error


def _remove(directory: Path) -> None:
    """Remove a directory that this module makes, or what a VMM has put in its place."""
    if directory.is_symlink() or not directory.is_dir():
        with filesystem_errors("remove", directory):
            directory.unlink(missing_ok=True)
    else:
        remove_tree(directory)
