"""A command's standard input: bytes, or a file that is read as fast as the command takes it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

from ramet.errors import FilesystemError, RametError, UsageError
from ramet.system import threads

_PIECE_BYTES: Final = 65_536


async def pieces(source: Any) -> AsyncIterator[bytes]:
    """Yield the bytes of `source`: bytes themselves, or anything with `read`, plain or async, binary or text.

    A file is read in pieces in a thread, so that it may be larger than memory, and may block. Raises
    `FilesystemError` when it can't be read, `UsageError` when it gives something else than bytes or text.
    """
    if isinstance(source, bytes | str):
        yield source if isinstance(source, bytes) else source.encode("utf-8", "surrogateescape")
        return
    while piece := await _piece(source):
        yield piece


async def read_all(source: Any, most_bytes: int) -> bytes:
    """Read `source` completely, for several commands that are to read the same.

    Errors as `pieces`; `UsageError` when it has more than `most_bytes`.
    """
    body = bytearray()
    async for piece in pieces(source):
        body += piece
        if len(body) > most_bytes:
            raise UsageError(
                f"stdin of exec: a file of more than {most_bytes} bytes can't be given to several forks",
                hint="copy it into the guest that is forked",
            )
    return bytes(body)


async def _piece(source: Any) -> bytes:
    # read1 gives what there is; read waits until a piece is full, which a pipe's writer may never make it.
    read = getattr(source, "read1", None) or source.read
    try:
        if inspect.iscoroutinefunction(read):
            piece = await read(_PIECE_BYTES)
        else:
            piece = await threads.run(
                partial(read, _PIECE_BYTES), abandon_on_cancel=True, waits_for_others=True
            )
            if inspect.isawaitable(piece):
                piece = await piece
    except RametError:
        raise
    except OSError as error:
        raise FilesystemError(
            f"stdin of exec: it can't be read: {error.strerror or error}", number=error.errno
        ) from error
    except Exception as error:  # somebody else's object, or a closed file's ValueError
        raise UsageError(f"stdin of exec: it can't be read: {type(error).__name__}: {error}") from error
    if isinstance(piece, str):
        return piece.encode("utf-8", "surrogateescape")
    if isinstance(piece, bytes | bytearray | memoryview):
        return bytes(piece)
    raise UsageError(f"stdin of exec: its read() gave {type(piece).__name__}, neither bytes nor text")
