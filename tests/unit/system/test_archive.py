"""Archives of sparse files: what is written, and that nothing else is accepted."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ramet.errors import DamagedError, FilesystemError, UnavailableError
from ramet.system.archive import ArchiveFacts, write_archive
from ramet.system.archive_format import MAX_DATA_BYTES, MAX_MANIFEST_BYTES, MAX_PARTS
from ramet.system.archive_reader import ArchiveReader
from ramet.system.files import allocated_bytes, filesystem_errors
from ramet.units import KIB, MIB, PAGE_SIZE_BYTES
from tests.support.archive_bytes import ended, header, part, record, stream_of

MANIFEST = b'{"what": "it is"}'
SMALL = ended(
    header(MANIFEST, data_bytes=8)
    + part("mem", 3 * PAGE_SIZE_BYTES, (0, b"gene"), (2 * PAGE_SIZE_BYTES, b"s"))
    + part("nothing", 0)
    + part("vmstate", 7, (4, b"hot"))
)

offsets = st.integers(0, 80).map(lambda page: page * PAGE_SIZE_BYTES) | st.integers(0, 400 * KIB)
extents = st.lists(
    st.tuples(offsets, st.binary(min_size=1, max_size=9000) | st.integers(1, 100_000).map(bytes)), max_size=6
)
files = st.lists(st.tuples(st.integers(0, 600 * KIB), extents), max_size=4)


def make(path: Path, size: int, written: list[tuple[int, bytes]]) -> bytes:
    """A sparse file with that data in it, and its content."""
    with path.open("wb") as file:
        for offset, data in written:
            file.seek(offset)
            file.write(data)
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
    return path.read_bytes()


@contextmanager
def opened(paths: list[Path]) -> Iterator[list[tuple[str, int]]]:
    with ExitStack() as stack:
        yield [(path.name, stack.enter_context(path.open("rb")).fileno()) for path in paths]


def write(out: int, paths: list[Path]) -> ArchiveFacts:
    with opened(paths) as parts:
        return write_archive(out, MANIFEST, parts, to="the archive")


def read(stream: int, directory: Path) -> tuple[bytes, list[Path]]:
    """The manifest and the files of an archive that is right."""
    reader = ArchiveReader(stream, name="the archive")
    received = []
    while (following := reader.next_part()) is not None:
        path = directory / following[0]
        with path.open("xb") as file, filesystem_errors("write", f"a part of the archive, {path}"):
            reader.receive(file.fileno())
        assert path.stat().st_size == following[1]
        received.append(path)
    return reader.manifest, received


def pages_with_data(content: bytes) -> int:
    pages = range(0, len(content), PAGE_SIZE_BYTES)
    return sum(any(content[start : start + PAGE_SIZE_BYTES]) for start in pages)


@settings(max_examples=80, deadline=None)
@given(files)
def test_what_goes_in_comes_out(made: list[tuple[int, list[tuple[int, bytes]]]]) -> None:
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as archive:
        source, destination = Path(place, "source"), Path(place, "destination")
        source.mkdir()
        destination.mkdir()
        paths = [source / f"disk{number}" for number in range(len(made))]
        contents = [make(path, *what) for path, what in zip(paths, made, strict=True)]
        facts = write(archive.fileno(), paths)
        assert facts.archive_bytes == os.fstat(archive.fileno()).st_size
        assert facts.logical_bytes == sum(map(len, contents))
        data_pages = sum(map(pages_with_data, contents))
        assert facts.data_bytes <= data_pages * PAGE_SIZE_BYTES
        assert facts.archive_bytes <= 300 + 100 * len(paths) + data_pages * (PAGE_SIZE_BYTES + 16)
        archive.seek(0)
        manifest, received = read(archive.fileno(), destination)
        assert manifest == MANIFEST
        assert [path.name for path in received] == [path.name for path in paths]
        for path, content in zip(received, contents, strict=True):
            assert path.read_bytes() == content
            # A filesystem may keep blocks of its own for where they are.
            assert allocated_bytes(path) <= (pages_with_data(content) + 1) * PAGE_SIZE_BYTES


def test_the_bytes_are_the_documented_ones(tmp_path: Path) -> None:
    make(tmp_path / "mem", 2 * MIB, [(0, b"a" * PAGE_SIZE_BYTES), (MIB, b"b" * 2 * PAGE_SIZE_BYTES)])
    make(tmp_path / "empty", 0, [])
    with tempfile.TemporaryFile() as archive:
        write(archive.fileno(), [tmp_path / "mem", tmp_path / "empty"])
        archive.seek(0)
        assert archive.read() == ended(
            header(MANIFEST, data_bytes=3 * PAGE_SIZE_BYTES)
            + part("mem", 2 * MIB, (0, b"a" * PAGE_SIZE_BYTES), (MIB, b"b" * 2 * PAGE_SIZE_BYTES))
            + part("empty", 0)
        )


@pytest.mark.parametrize("kind", ["pipe", "pipe that doesn't block", "socket"])
def test_through_a_stream(tmp_path: Path, kind: str) -> None:
    content = make(tmp_path / "mem", 24 * MIB, [(3, os.urandom(5 * MIB)), (17 * MIB, os.urandom(MIB))])
    if kind == "socket":
        out, stream = (end.detach() for end in socket.socketpair())
    else:
        stream, out = os.pipe()
    if "block" in kind:
        for end in (stream, out):
            fcntl.fcntl(end, fcntl.F_SETFL, os.O_NONBLOCK)
    facts: list[ArchiveFacts] = []

    def export() -> None:
        try:
            facts.append(write(out, [tmp_path / "mem"]))
        finally:
            os.close(out)

    writing = threading.Thread(target=export)
    writing.start()
    try:
        (tmp_path / "new").mkdir()
        read(stream, tmp_path / "new")
    finally:
        os.close(stream)
        writing.join(timeout=60)
    assert (tmp_path / "new" / "mem").read_bytes() == content
    assert facts[0].archive_bytes < 6 * MIB + 8 * PAGE_SIZE_BYTES


def test_zeros_that_come_become_holes(tmp_path: Path) -> None:
    data = bytes(64 * KIB) + b"x" + bytes(64 * KIB)
    archive = ended(header(MANIFEST) + part("mem", MIB, (5, data)))
    with stream_of(archive) as stream:
        read(stream, tmp_path)
    assert (tmp_path / "mem").read_bytes() == (bytes(5) + data).ljust(MIB, b"\0")
    assert allocated_bytes(tmp_path / "mem") <= 2 * PAGE_SIZE_BYTES


def refused(
    archive: bytes, error: type[Exception] | tuple[type[Exception], ...], match: str | None = None
) -> None:
    with (
        tempfile.TemporaryDirectory() as place,
        stream_of(archive) as stream,
        pytest.raises(error, match=match) as raised,
    ):
        read(stream, Path(place))
    assert "the archive" in str(raised.value)


def test_the_small_one_is_right(tmp_path: Path) -> None:
    with stream_of(SMALL) as stream:
        read(stream, tmp_path)
    assert (tmp_path / "vmstate").read_bytes() == b"\0\0\0\0hot"


def test_it_may_end_nowhere_else() -> None:
    for length in range(len(SMALL)):
        refused(SMALL[:length], DamagedError, "cut short")


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_every_bit_counts(step: int) -> None:
    for number in range(0, 8 * len(SMALL), step):
        altered = bytearray(SMALL)
        altered[number // 8] ^= 1 << number % 8
        # Also a size that no file can have.
        refused(bytes(altered), (DamagedError, UnavailableError, FilesystemError))


def body(*pieces: bytes, data_bytes: int = MIB) -> bytes:
    return ended(header(MANIFEST, data_bytes=data_bytes) + b"".join(pieces))


@pytest.mark.parametrize(
    ("archive", "match"),
    [
        (b"PK\3\4" + bytes(200), "isn't an export"),
        (ended(header(MANIFEST, magic=b"RAMET\n\x1a\n")), "isn't an export"),
        (header(b"", manifest_bytes=MAX_MANIFEST_BYTES + 1), f"manifest has {MAX_MANIFEST_BYTES + 1} bytes"),
        (header(b"{}", manifest_bytes=MAX_MANIFEST_BYTES), "cut short"),
        (SMALL + b"\0", "something follows"),
        (SMALL + SMALL, "something follows"),
        (header(MANIFEST) + record(4, 32) + bytes(32), "digest"),
        (header(MANIFEST) + record(4, 31) + bytes(32), "last record is malformed"),
        (header(MANIFEST) + record(4, 32, 1) + bytes(32), "last record is malformed"),
        (body(record(0)), "type 0 stands where"),
        (body(record(2, 1) + b"x"), "type 2 stands where"),
        (body(record(3)), "type 3 stands where"),
        (body(record(255)), "type 255 stands where"),
        (body(record(1, 3, 9) + b"mem", record(4, 32) + bytes(32)), "type 4 stands among"),
        (body(record(1, 3, 9) + b"mem", part("delta", 0)), "type 1 stands among"),
        (body(record(1, 3, 9) + b"mem", record(3, 1)), "end of a part is malformed"),
        (body(record(1, 3, 9) + b"mem", record(3, 0, 1)), "end of a part is malformed"),
        (body(record(1, 3, 9, b"\0\1\0") + b"mem"), "reserved"),
        (body(part("mem", 9, (0, b""))), "record has 0 bytes"),
        (
            body(record(1, 3, 9) + b"mem", record(2, MAX_DATA_BYTES + 1)),
            f"{MAX_DATA_BYTES + 1} bytes of data",
        ),
        (body(part("mem", 9, (4, b"ab"), (0, b"cd"))), "offset 0 comes after data up to 6"),
        (body(part("mem", 9, (4, b"ab"), (5, b"cd"))), "offset 5 comes after data up to 6"),
        (body(part("mem", 9, (4, b"ab"), (4, b"ab"))), "offset 4 comes after data up to 6"),
        (body(part("mem", 9, (8, b"ab"))), "9 bytes has data at 10"),
        (body(part("mem", 9, (2**64 - 1, b"ab"))), "has data at"),
        (body(part("mem", 9, (0, b"abc")), part("delta", 9, (0, b"abc")), data_bytes=5), "than the 5 bytes"),
        (body(part("mem", 2**63)), "'mem' has 9223372036854775808 bytes"),
        (body(part("", 0)), "name has 0 bytes"),
        (body(part("m" * 256, 0)), "name has 256 bytes"),
        (body(part(b"\xff", 0)), "UTF-8"),
        *[
            (body(part(name, 0)), "isn't the name of a part")
            for name in ("../mem", "/etc/passwd", "a/b", "..", ".", ".tmp-mem", "a\0b", "a\nb", "\x1b[2J")
        ],
        (body(part("mem", 0), part("mem", 0)), "comes twice"),
        (body(*[part(f"disk{number}", 0) for number in range(MAX_PARTS + 1)]), "more than 64 parts"),
    ],
)
def test_against_the_rules(archive: bytes, match: str) -> None:
    refused(archive, DamagedError, match)


@pytest.mark.parametrize(
    ("archive", "match"),
    [
        (header(MANIFEST, version=2), "format 2; this ramet knows format 1"),
        (header(MANIFEST, version=0), "format 0"),
        (header(MANIFEST, codec=1), "codec 1"),
        (header(MANIFEST, reserved=1), "ramet knows"),
    ],
)
def test_a_newer_one(archive: bytes, match: str) -> None:
    refused(ended(archive), UnavailableError, match)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.sampled_from([record(1, 3, 9) + b"mem", record(3)]), max_size=8))
@example([part("mem", 9, (0, b"x"))])
def test_anything_at_all(pieces: list[bytes]) -> None:
    """No end record: whatever comes, it is refused, and by an error of ramet's."""
    refused(header(MANIFEST) + b"".join(pieces), DamagedError)


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    make(tmp_path / "mem", 4 * MIB, [(0, b"x" * 4 * MIB)])
    stream, out = os.pipe()
    os.close(stream)
    try:
        with pytest.raises(FilesystemError, match="can't write the archive") as raised:
            write(out, [tmp_path / "mem"])
    finally:
        os.close(out)
    assert raised.value.number == errno.EPIPE


class GivenUp(Exception):
    """What a checkpoint raises."""


def after(calls: int) -> Callable[[], None]:
    """A checkpoint that gives up when it is called the next time after so many."""
    left = iter(range(calls))

    def checkpoint() -> None:
        if next(left, None) is None:
            raise GivenUp

    return checkpoint


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    """A pipe that nobody reads, one into which nobody writes, and a file of zeros, can be given up."""
    make(tmp_path / "mem", 4 * MIB, [(0, b"x" * 4 * MIB)])
    make(tmp_path / "zeros", 4 * MIB, [(0, bytes(4 * MIB))])
    stream, out = os.pipe()
    try:
        for name, calls in (("mem", 20), ("zeros", 1)):
            with opened([tmp_path / name]) as parts, pytest.raises(GivenUp):
                write_archive(out, MANIFEST, parts, to="the archive", checkpoint=after(calls))
        while select_readable(stream):
            os.read(stream, MIB)
        with pytest.raises(GivenUp):
            ArchiveReader(stream, name="the archive", checkpoint=after(3))
    finally:
        os.close(stream)
        os.close(out)


def select_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def test_a_part_that_shrinks_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mem"
    make(path, 4 * MIB, [(0, b"x" * 4 * MIB)])

    def shrink() -> None:
        os.truncate(path, MIB)

    with (
        tempfile.TemporaryFile() as archive,
        opened([path]) as parts,
        pytest.raises(FilesystemError, match="shrank"),
    ):
        write_archive(archive.fileno(), MANIFEST, parts, to="the archive", checkpoint=shrink)
