"""qcow2 images: a new disk, empty or with the content of a raw file, or an overlay over a frozen disk.

Written here and not by `qemu-img create`, because a fork makes one image per disk, and a separate process
takes 14 ms where this takes a tenth. Existing images are read in `chains.py`.

Source: QEMU's docs/interop/qcow2.rst, "Header", "Header extensions", "Refcounts", "Cluster mapping".
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ramet.system.copying import data_extents
from ramet.system.files import filesystem_errors, new_file, write_all

CLUSTER_BITS: Final = 16
CLUSTER_BYTES: Final = 1 << CLUSTER_BITS
MAGIC: Final = b"QFI\xfb"
HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII")
"""Version 3 without its optional fields: 104 bytes."""
EXTENSION: Final = struct.Struct(">II")
BACKING_FORMAT: Final = 0xE2792ACA

_L2_ENTRIES: Final = CLUSTER_BYTES // 8
# An L1 entry stands for an L2 table, which is one cluster of 8-byte entries, each of which is a cluster.
_L1_ENTRY_COVERS_BYTES: Final = _L2_ENTRIES * CLUSTER_BYTES
_REFCOUNTS_A_BLOCK: Final = CLUSTER_BYTES // 2  # of 16 bits
_COPIED: Final = 1 << 63
"""Flag in an entry of either table: the target has a refcount of one and may be written in place."""
_REFCOUNT_TABLE: Final = 1
"""The cluster after the header's. The refcount blocks follow, then the L1 table, L2 tables and data."""
_ZEROS: Final = bytes(CLUSTER_BYTES)


def make_qcow2(path: Path, size_bytes: int, *, backing: str | None = None) -> None:
    """Make an image of `size_bytes`: all zeros or, with `backing`, the content of that qcow2 file.

    `backing` is named relative to the new image. `path` must not exist. Not synced. Raises `FilesystemError`;
    there is no file then.
    """
    with filesystem_errors("make", path), new_file(path) as descriptor:
        _write_tables(descriptor, size_bytes, [], backing=backing)


def fill_qcow2(path: Path, size_bytes: int, raw: int) -> None:
    """Make an image of `size_bytes` with the content of the raw file that is open as `raw`.

    Holes of the raw file take no space in the image, nor do clusters of zeros. `path` must not exist. Not
    synced. Raises `FilesystemError`; there is no file then.
    """
    with filesystem_errors("make", path), new_file(path) as descriptor:
        clusters = list(_data_clusters(raw, size_bytes))
        for cluster, offset in zip(
            clusters, _write_tables(descriptor, size_bytes, clusters, backing=None), strict=True
        ):
            data = os.pread(raw, CLUSTER_BYTES, cluster * CLUSTER_BYTES)
            # Holes smaller than a cluster stay holes, a filesystem's block at a time.
            for at in range(0, len(data), 4096):
                block = data[at : at + 4096]
                if block != _ZEROS[: len(block)]:
                    write_all(descriptor, block, offset + at)


def _data_clusters(raw: int, size_bytes: int) -> Iterator[int]:
    """Yield the numbers of the clusters of the raw file that aren't all zeros, ascending."""
    following = 0
    for start, end in data_extents(raw, size_bytes):
        for cluster in range(max(following, start // CLUSTER_BYTES), -(-end // CLUSTER_BYTES)):
            following = cluster + 1
            data = os.pread(raw, CLUSTER_BYTES, cluster * CLUSTER_BYTES)
            if data != _ZEROS[: len(data)]:
                yield cluster


def _write_tables(descriptor: int, size_bytes: int, clusters: list[int], *, backing: str | None) -> list[int]:
    """Write everything except the data of the guest's `clusters`. Returns the file offset of each cluster."""
    l1_entries = -(-size_bytes // _L1_ENTRY_COVERS_BYTES)
    l1_clusters = -(-l1_entries * 8 // CLUSTER_BYTES)
    tables = sorted({cluster // _L2_ENTRIES for cluster in clusters})
    counted = _REFCOUNT_TABLE + 1 + l1_clusters + len(tables) + len(clusters)
    # The refcount blocks count themselves.
    blocks = 1
    while blocks * _REFCOUNTS_A_BLOCK < counted + blocks:
        blocks += 1
    first_block = _REFCOUNT_TABLE + 1
    l1_table = first_block + blocks
    first_l2 = l1_table + l1_clusters
    first_data = first_l2 + len(tables)
    used = first_data + len(clusters)
    os.ftruncate(descriptor, used * CLUSTER_BYTES)
    header = _header(size_bytes, l1_entries, l1_table, backing)
    write_all(descriptor, header, 0)
    offsets = [(first_block + number) * CLUSTER_BYTES for number in range(blocks)]
    write_all(descriptor, struct.pack(f">{blocks}Q", *offsets), _REFCOUNT_TABLE * CLUSTER_BYTES)
    write_all(descriptor, struct.pack(">H", 1) * used, first_block * CLUSTER_BYTES)
    places = [(first_data + number) * CLUSTER_BYTES for number in range(len(clusters))]
    for number, table in enumerate(tables):
        offset = (first_l2 + number) * CLUSTER_BYTES
        write_all(descriptor, struct.pack(">Q", offset | _COPIED), l1_table * CLUSTER_BYTES + table * 8)
    where = dict(zip(tables, range(first_l2, first_data), strict=True))
    for cluster, place in zip(clusters, places, strict=True):
        table, entry = divmod(cluster, _L2_ENTRIES)
        write_all(descriptor, struct.pack(">Q", place | _COPIED), where[table] * CLUSTER_BYTES + entry * 8)
    return places


def _header(size_bytes: int, l1_entries: int, l1_table: int, backing: str | None) -> bytes:
    extensions = b""
    if backing is not None:
        extensions += EXTENSION.pack(BACKING_FORMAT, 5) + b"qcow2\0\0\0"  # padded to 8 octets
    extensions += EXTENSION.pack(0, 0)
    name = os.fsencode(backing or "")
    header = HEADER.pack(
        MAGIC,
        3,
        HEADER.size + len(extensions) if name else 0,
        len(name),
        CLUSTER_BITS,
        size_bytes,
        0,  # not encrypted
        l1_entries,
        l1_table * CLUSTER_BYTES,
        _REFCOUNT_TABLE * CLUSTER_BYTES,
        1,  # clusters of the refcount table: 8192 blocks of 32768 counts, 16 TiB of file
        0,  # internal snapshots
        0,
        0,  # incompatible, compatible and autoclear features
        0,
        0,
        4,  # 16-bit refcounts
        HEADER.size,
    )
    return header + extensions + name
