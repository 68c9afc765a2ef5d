"""Checks that a published part still is what its manifest says.

There are two. Before each fork: size, mode and modification time, and that no blocks are missing, without
reading a byte of guest RAM. On import, on `verify` and after decompression: the content, by digest. The
digest also decides where the facts differ, see `confirmed`.

Filesystems change allocated blocks by themselves: XFS gives up what it had reserved behind a file, btrfs
compresses and rebalances, ZFS allocates late, a copy keeps other holes. So another number of blocks is never
damage. Fewer blocks are a reason to look at the content: a hole punched into a part whose times were put back
shows nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from ramet.errors import DamagedError
from ramet.progress import report
from ramet.system.copying import data_extents
from ramet.system.files import STAT_BLOCK_BYTES, filesystem_errors, open_regular
from ramet.units import KIB

DIGEST_BLOCK_BYTES: Final = 64 * KIB
_ZERO_BLOCK: Final = bytes(DIGEST_BLOCK_BYTES)
_DIGEST_NAME: Final = "sparse-sha256"
MAKE_AGAIN: Final = "it can't be mended: make the capture again; forks that run aren't affected"


class PartFacts(msgspec.Struct, frozen=True):
    """The facts of a file that are known without opening it. Not ctime, which a hard link changes."""

    size_bytes: int
    allocated_bytes: int
    """At the time. The filesystem may change it, see above."""
    mode: int
    """Permission bits only."""
    mtime_ns: int


def facts_of(path: Path) -> PartFacts:
    """Read the facts of a file that has been synced (until then its blocks may still change).

    Raises `FilesystemError`, `DamagedError` when it isn't a regular file.
    """
    with filesystem_errors("look at", path):
        return _facts(path, os.lstat(path))


def _facts(path: Path, facts: os.stat_result) -> PartFacts:
    if not stat.S_ISREG(facts.st_mode):
        raise DamagedError(f"{path} isn't a regular file")
    allocated = facts.st_blocks * STAT_BLOCK_BYTES
    return PartFacts(facts.st_size, allocated, stat.S_IMODE(facts.st_mode), facts.st_mtime_ns)


def current_facts(path: Path) -> PartFacts:
    """Read the present facts of a part.

    Raises `DamagedError` when the part is missing or isn't a regular file.
    """
    with filesystem_errors("look at", path):
        try:
            looked = os.lstat(path)
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing", hint=MAKE_AGAIN) from None
    return _facts(path, looked)


def differences(present: PartFacts, facts: PartFacts) -> list[str]:
    """List the facts that may mean other content, each with both values; empty when the facts hold.

    More blocks than before mean nothing: size and modification time are the same.
    """
    if present == facts:
        return []
    return [
        f"{name} is {_shown(name, getattr(present, name))}, was {_shown(name, getattr(facts, name))}"
        for name in PartFacts.__struct_fields__
        if getattr(present, name) != getattr(facts, name)
        and not (name == "allocated_bytes" and present.allocated_bytes > facts.allocated_bytes)
    ]


def changed(path: Path, differing: list[str], also: str = "") -> DamagedError:
    """Make the error for a part that has changed."""
    return DamagedError(
        f"{path} has changed since it was published: {', '.join(differing)}{also}", hint=MAKE_AGAIN
    )


def check(path: Path, facts: PartFacts) -> None:
    """Raise `DamagedError`, naming what differs, unless the file is there and its facts hold.

    Never reads content.
    """
    if differing := differences(current_facts(path), facts):
        raise changed(path, differing)


def _shown(name: str, value: int) -> str:
    return f"{value:04o}" if name == "mode" else str(value)


def digest(path: Path) -> str:
    """Compute a file's digest: `sparse-sha256:` and 64 hex digits, over content and size, not over holes.

    It is the SHA-256 of the size (8 bytes, little-endian) and then, for each 64 KiB block that isn't all
    zeros, in order, the block's index (8 bytes, little-endian) and the block, the last block padded with
    zeros to 64 KiB. Records are of one length and begin with a rising index, so different content can't give
    the same bytes. Blocks of zeros leave no trace, whether they are holes or written; holes are skipped
    without being read.

    Raises `FilesystemError`.
    """
    with filesystem_errors("read", path), open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        return digest_of_blocks(size, _reported(_blocks(descriptor, size), f"reading {path.name}", size))


def _reported(
    blocks: Iterable[tuple[int, bytearray]], stage: str, size_bytes: int
) -> Iterator[tuple[int, bytearray]]:
    for index, block in blocks:
        report(stage, index * DIGEST_BLOCK_BYTES, size_bytes)
        yield index, block


def digest_of_blocks(size_bytes: int, blocks: Iterable[tuple[int, bytearray]]) -> str:
    """Compute the digest of a file of that size from its blocks, each with its index, ascending.

    Every block that isn't zeros has to be among them.
    """
    total = SparseDigest(size_bytes)
    for index, block in blocks:
        total.block(index, block)
    return total.text


class SparseDigest:
    """A digest, as `digest` computes it, of content that arrives in pieces."""

    def __init__(self, size_bytes: int) -> None:
        self._total = hashlib.sha256(size_bytes.to_bytes(8, "little"))

    def block(self, index: int, block: bytes | bytearray) -> None:
        """Add the whole block of that index. Indices ascend, and only blocks of zeros may be left out."""
        if block != _ZERO_BLOCK:
            self._total.update(index.to_bytes(8, "little"))
            self._total.update(block)

    def stretch(self, start: int, data: bytes) -> None:
        """Add consecutive blocks from the offset `start` on; only the file's last block may be shorter."""
        for at in range(0, len(data), DIGEST_BLOCK_BYTES):
            block = data[at : at + DIGEST_BLOCK_BYTES].ljust(DIGEST_BLOCK_BYTES, b"\0")
            self.block((start + at) // DIGEST_BLOCK_BYTES, block)

    @property
    def text(self) -> str:
        """The digest of all content so far."""
        return f"{_DIGEST_NAME}:{self._total.hexdigest()}"


def _blocks(descriptor: int, size_bytes: int) -> Iterator[tuple[int, bytearray]]:
    """Yield each block that has data. All of them are the same buffer, with other content."""
    buffer = bytearray(DIGEST_BLOCK_BYTES)
    following = 0
    for start, end in data_extents(descriptor, size_bytes):
        # Two extents can touch the same block; it is digested once, holes in it read as zeros.
        for index in range(max(following, start // DIGEST_BLOCK_BYTES), -(-end // DIGEST_BLOCK_BYTES)):
            got = _read_block(descriptor, buffer, index * DIGEST_BLOCK_BYTES)
            buffer[got:] = _ZERO_BLOCK[got:]
            yield index, buffer
            following = index + 1


def _read_block(descriptor: int, buffer: bytearray, offset: int) -> int:
    """Fill the buffer from that offset; fewer bytes only at the end of the file."""
    view = memoryview(buffer)
    got = 0
    while got < len(buffer) and (taken := os.preadv(descriptor, [view[got:]], offset + got)):
        got += taken
    return got
