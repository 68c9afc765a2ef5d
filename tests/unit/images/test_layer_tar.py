"""Layers' archives: each form of names, numbers and holes; bounds on every size in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import DamagedError
from ramet.images.layers.contents import LayerContents
from ramet.images.layers.limits import Limits
from ramet.images.layers.merge import Merge
from ramet.images.layers.read import add_layer
from ramet.images.layers.tar_entries import TarEntry, TarReader
from ramet.images.layers.tree import walk
from ramet.images.layers.unpack import LayerStream
from ramet.units import GIB, MIB, TIB
from tests.unit.images.layer_tars import member, merged, tar

LONG = "/".join(["d" * 90] * 20)


def entries(data: bytes, limits: Limits | None = None) -> list[tuple[TarEntry, bytes]]:
    reader = TarReader(LayerStream([data], limits or Limits()), limits or Limits())
    found = []
    for entry in reader:
        content = bytearray(min(entry.size_bytes, 64 * MIB))
        for offset, piece in reader.contents():
            content[offset : offset + len(piece)] = piece
        found.append((entry, bytes(content)))
    return found


def raw(
    name: bytes = b"f",
    kind: bytes = b"0",
    size: int | bytes = 0,
    *,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    uid: bytes = b"0000000\0",
    mtime: bytes = b"00000000000\0",
    tail: bytes = b"",
) -> bytes:
    """A header, valid but for what the test wants."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = name.ljust(100, b"\0") + b"0000644\0" + uid + b"0000000\0" + field + mtime + b" " * 8 + kind
    block = (block + link.ljust(100, b"\0") + magic + bytes(80) + tail).ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def extended(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    body = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        while length != len(str(length)) + len(key) + len(value) + 3:
            length = len(str(length)) + len(key) + len(value) + 3
        body += b"%d %s=%s\n" % (length, key, value)
    return raw(b"x", kind, len(body)) + body + bytes(-len(body) % 512)


END = bytes(1024)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_format_that_python_writes(form: int) -> None:
    members = [
        member("d/", tarfile.DIRTYPE, mode=0o1777),
        member("d/f", data=b"x" * 1000, mode=0o6755, owner=(1000, 2000)),
        member("l", tarfile.SYMTYPE, link="../d/f"),
        member("h", tarfile.LNKTYPE, link="d/f"),
        member("c", tarfile.CHRTYPE, device=(4, 64)),
        member("b", tarfile.BLKTYPE, device=(8, 1)),
        member("p", tarfile.FIFOTYPE),
    ]
    if form != tarfile.USTAR_FORMAT:
        members += [
            member(LONG, data=b"long"),
            member("to", tarfile.SYMTYPE, link=LONG),
            member("\udcff\n\\", data=b""),
            member("owned", owner=(2_000_000_000, 2**31)),
        ]
    found = {os.fsdecode(entry.name): (entry, data) for entry, data in entries(tar(members, form))}
    assert found["d/f"][1] == b"x" * 1000
    assert found["d/f"][0].permissions == 0o6755
    assert (found["d/f"][0].uid, found["d/f"][0].gid) == (1000, 2000)
    assert stat.S_ISDIR(found.get("d", found.get("d/"))[0].file_type)  # type: ignore[index]
    assert found["l"][0].link == b"../d/f"
    assert found["h"][0].file_type == 0
    assert found["c"][0].device == (4, 64)
    assert found["b"][0].file_type == stat.S_IFBLK
    assert found["p"][0].file_type == stat.S_IFIFO
    if form != tarfile.USTAR_FORMAT:
        assert found[LONG][1] == b"long"
        assert found["to"][0].link == LONG.encode()
        assert "\udcff\n\\" in found
        assert (found["owned"][0].uid, found["owned"][0].gid) == (2_000_000_000, 2**31)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1.5", (1, 500_000_000)),
        ("-1.5", (-2, 500_000_000)),
        ("-0.5", (-1, 500_000_000)),
        ("-3", (-3, 0)),
        ("4102444800.123456789", (4102444800, 123456789)),
        ("-1.0000000001", (-2, 999_999_999)),
        ("7.", (7, 0)),
    ],
)
def test_times_are_rounded_down(text: str, time: tuple[int, int]) -> None:
    assert entries(tar([member("f", mtime=text)]))[0][0].mtime == time


def test_attributes_are_bytes() -> None:
    xattrs = {b"security.capability": b"\x01\0\0\x02\xff=\n", b"user.empty": b"", b"user.x": b"\xff" * 3000}
    assert entries(tar([member("f", xattrs=xattrs)]))[0][0].xattrs == xattrs


def test_old_and_large_numbers_in_headers() -> None:
    found = entries(raw(b"v7", b"\0", magic=bytes(8)) + raw(b"dir/", b"\0", magic=bytes(8)) + END)
    assert [entry.file_type for entry, _ in found] == [stat.S_IFREG, stat.S_IFDIR]
    large = raw(uid=b"\x80" + (2**31).to_bytes(7, "big"), mtime=(-5 & (2**96 - 1)).to_bytes(12, "big"))
    assert (entries(large + END)[0][0].uid, entries(large + END)[0][0].mtime) == (2**31, (-5, 0))


def test_global_headers_change_nothing_and_the_end_may_be_missing() -> None:
    data = extended((b"path", b"other"), (b"comment", b"x"), kind=b"g") + raw(b"f")
    assert [entry.name for entry, _ in entries(data)] == [b"f"]


def test_links_and_directories_have_no_data() -> None:
    data = raw(b"l", b"2", 99, link=b"x") + raw(b"d", b"5", 99) + raw(b"h", b"1", 99, link=b"x") + END
    assert [entry.size_bytes for entry, _ in entries(data)] == [0, 0, 0]


SPARSE = [
    pytest.param(["--format=gnu"], id="gnu"),
    *[
        pytest.param(["--format=posix", f"--sparse-version={version}"], id=version)
        for version in ("0.0", "0.1", "1.0")
    ],
]


@pytest.mark.parametrize("options", SPARSE)
def test_sparse_files_as_gnu_tar_writes_them(tmp_path: Path, options: list[str]) -> None:
    if (
        shutil.which("tar") is None
        or b"GNU tar" not in subprocess.run(["tar", "--version"], capture_output=True).stdout
    ):
        pytest.skip("no GNU tar here")
    draw = random.Random(1)
    with (tmp_path / "sparse").open("wb") as file:
        for number in range(60):
            file.seek(number * 40_000)
            file.write(draw.randbytes(draw.choice([100, 5000])))
        file.truncate(5_000_000)
    (tmp_path / "behind").write_bytes(b"still in step")
    packed = subprocess.run(
        ["tar", "-cS", *options, "sparse", "behind"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=20,
    ).stdout
    assert len(packed) < 2_000_000
    found = {entry.name.rpartition(b"/")[2]: data for entry, data in entries(packed)}
    assert found == {name: (tmp_path / name.decode()).read_bytes() for name in (b"sparse", b"behind")}
    with merged([packed]) as tree:
        nodes = dict(walk(tree.root))
        assert tree.data(nodes[b"sparse"]) == found[b"sparse"]
        blob = os.pread(tree.pages[0].fileno(), 10_000_000, 0)
        assert tree.contents[0].digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"


COMPRESSED: list[Callable[[bytes], bytes]] = [
    lambda data: data,
    gzip.compress,
    lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]) + bytes(100),
    zstandard.compress,
    lambda data: (
        zstandard.compress(data[:700]) + b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(data[700:])
    ),
    lambda data: b"\x5f\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(data),
]


@pytest.mark.parametrize("compress", COMPRESSED)
@pytest.mark.parametrize("step", [1, 3, 5000, 10**9])
def test_each_compression_fed_in_pieces_of_any_size(compress: Callable[[bytes], bytes], step: int) -> None:
    data = tar([member("zeros", data=bytes(200_000)), member("f", data=random.Random(0).randbytes(9000))])
    packed = compress(data)
    stream = LayerStream(packed[at : at + step] for at in range(0, len(packed), step))
    assert [entry.name for entry in TarReader(stream)] == [b"zeros", b"f"]
    assert stream.finish() == f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress])
def test_a_cut_or_changed_stream_is_damaged(compress: Callable[[bytes], bytes]) -> None:
    packed = compress(tar([member("f", data=random.Random(0).randbytes(9000))]))
    for damaged in (
        packed[:-3],
        packed[:100],
        packed + b"\x01garbage",
        packed[:50] + b"\xff\xff" + packed[52:],
    ):
        with pytest.raises(DamagedError, match="layer 0 is damaged"), merged([damaged]):
            pass


def test_another_diff_id_is_damaged(tmp_path: Path) -> None:
    data = tar([member("f")])
    with (tmp_path / "s").open("w+b") as file:
        contents = LayerContents(0, pages=file.fileno(), small=file.fileno())
        with pytest.raises(DamagedError, match="sha256:x is damaged: its content has the digest"):
            add_layer(Merge(), contents, [data], name="sha256:x", diff_id="sha256:" + "0" * 64)


@pytest.mark.parametrize(
    "compress", [lambda data: gzip.compress(data, 9), lambda data: zstandard.compress(data, 19)]
)
def test_a_bomb_ends_at_the_limit_and_takes_little_memory(compress: Callable[[bytes], bytes]) -> None:
    packed = compress(bytes(128 * MIB))
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match="unpacks to more than"):
            LayerStream([packed], Limits(unpacked_bytes=64 * MIB)).finish()
        assert tracemalloc.get_traced_memory()[1] < 48 * MIB
    finally:
        tracemalloc.stop()


def test_a_window_beyond_the_limit_is_damaged() -> None:
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3])  # a window of 2^31 bytes (RFC 8878, 3.1.1.1.2)
    with pytest.raises(DamagedError, match="can't be decompressed"):
        LayerStream([frame + bytes(100)]).finish()


HOSTILE = {
    "a PAX header of 2 GiB": (raw(b"x", b"x", 2 * GIB), "extended header is too large"),
    "a GNU name of 2 GiB": (raw(b"x", b"L", 2 * GIB), "extended header is too large"),
    "many small headers": (extended((b"comment", b"x" * 9000)) * 200 + raw(), "extended header is too large"),
    "a header without an entry": (extended((b"path", b"f")) + END, "no entry behind"),
    "a sparse member of 10 TB": (
        extended(
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.realsize", b"%d" % (10 * TIB)),
        )
        + raw(b"f", b"0", 512)
        + b"0\n".ljust(512, b"\0"),
        "too large",
    ),
    "an old sparse member of 10 TB": (
        raw(
            b"f",
            b"S",
            tail=bytes(41) + bytes(96) + b"\0" + b"\x80" + (10 * TIB).to_bytes(11, "big"),
            magic=b"ustar  \0",
        ),
        "too large",
    ),
    "a map of a billion pieces": (
        extended((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"99"))
        + raw(b"f", b"0", 512)
        + b"1000000000\n".ljust(512, b"\0"),
        "too many pieces",
    ),
    "a map without an end": (
        extended((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"99"))
        + raw(b"f", b"0", 1024)
        + b"1" * 1024,
        "map is damaged",
    ),
    "a map that overlaps": (
        extended((b"GNU.sparse.map", b"0,300,100,212"), (b"GNU.sparse.size", b"600"))
        + raw(b"f", b"0", 512)
        + bytes(512),
        "out of order",
    ),
    "a map behind the end": (
        extended((b"GNU.sparse.map", b"100,512"), (b"GNU.sparse.size", b"600"))
        + raw(b"f", b"0", 512)
        + bytes(512),
        "out of order",
    ),
    "a map longer than the data": (
        extended((b"GNU.sparse.map", b"0,900"), (b"GNU.sparse.size", b"900"))
        + raw(b"f", b"0", 512)
        + bytes(512),
        "differ in length",
    ),
    "a sparse file of no size": (extended((b"GNU.sparse.map", b"0,512")) + raw(b"f", b"0", 512), "no number"),
    "a file of 2^60 bytes": (extended((b"size", b"%d" % 2**59)) + raw(), "too large"),
    "a negative size": (raw(size=b"\xff" * 12), "size is out of range"),
    "a size that is no number": (raw(size=b"12x45\0      "), "size is no number"),
    "an owner of 2^32 - 1": (extended((b"uid", b"4294967295")) + raw(), "owner's number"),
    "a time beyond all": (extended((b"mtime", b"9" * 18 + b"9")) + raw(), "mtime"),
    "a time that is none": (extended((b"mtime", b"nan")) + raw(), "mtime"),
    "a zero in a name": (extended((b"path", b"a\0b")) + raw(), "zero"),
    "a name too long": (extended((b"path", b"a/" * 3000)) + raw(), "too long"),
    "a link to nothing": (raw(b"l", b"2"), "target is empty"),
    "an attribute without a name": (extended((b"SCHILY.xattr.user.", b"x")) + raw(), "can't be named"),
    "an attribute too large": (extended((b"SCHILY.xattr.user.x", b"x" * 65536)) + raw(), "is too large"),
    "attributes too large": (
        extended(*((b"SCHILY.xattr.user.%d" % n, b"x" * 60_000) for n in range(3))) + raw(),
        "are too large",
    ),
    "too many attributes": (
        extended(*((b"SCHILY.xattr.user.%d" % n, b"") for n in range(600))) + raw(),
        "too many",
    ),
    "a record that isn't one": (
        raw(b"x", b"x", 9) + b"99 path=x".ljust(512, b"\0") + raw(),
        "record is damaged",
    ),
    "a record of no length": (
        raw(b"x", b"x", 9) + b"path=x\n\n\n".ljust(512, b"\0") + raw(),
        "has no length",
    ),
    "a type that is none": (raw(b"f", b"M"), "of the type"),
    "no archive": (b"<!DOCTYPE html>".ljust(2048, b" "), "no number|no tar archive"),
    "a wrong checksum": (raw()[:-1] + b"x", "no tar archive"),
    "a cut file": (raw(b"f", b"0", 5000) + bytes(1024), "cut short"),
    "a cut header": (raw()[:300], "cut short"),
    "a block of zeros, then more": (bytes(512) + raw(), "something follows"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_one_error(case: str) -> None:
    data, reason = HOSTILE[case]
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match=f"layer 0 is damaged: .*({reason})"), merged([data]):
            pass
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def test_a_device_beyond_linux_is_damaged() -> None:
    with pytest.raises(DamagedError, match="'c': Linux has no device 4096:0"):
        entries(tar([member("c", tarfile.CHRTYPE, device=(4096, 0))]))


def test_the_layers_own_sizes_are_bounded_in_sum() -> None:
    data = tar([member("a", data=bytes(600)), member("b", data=bytes(600))])
    with pytest.raises(DamagedError, match="'b': the layer's files are too large"):
        entries(data, Limits(content_bytes=1000))


_VALID = tar(
    [
        member("d/f", data=b"x" * 700, xattrs={b"user.k": b"v"}, mtime="1.5"),
        member(LONG, data=b"y" * 5000),
        member("l", tarfile.SYMTYPE, link="d"),
        member("h", tarfile.LNKTYPE, link="d/f"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_VALID) - 1), st.binary(min_size=1, max_size=12)), max_size=4))
def test_any_damage_is_the_one_error_or_none(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(_VALID)
    for at, change in changes:
        data[at : at + len(change)] = change
    # A checksum that holds lets the damage reach the fields.
    for start in range(0, len(data) - 511, 512):
        block = bytes(data[start : start + 512])
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + 256 + sum(block[156:])
            data[start + 148 : start + 156] = b"%06o\0 " % total
    try:
        with merged([bytes(data)]):
            pass
    except DamagedError as error:
        assert error.message.startswith("layer 0 is damaged")  # noqa: PT017


def test_python_and_ramet_read_the_same() -> None:
    with tarfile.open(fileobj=io.BytesIO(_VALID)) as archive:
        theirs = [(info.name, info.mode, info.size if info.isreg() else 0, info.linkname) for info in archive]
    ours = [
        (os.fsdecode(entry.name), entry.permissions, entry.size_bytes, os.fsdecode(entry.link))
        for entry, _ in entries(_VALID)
    ]
    assert ours == theirs
