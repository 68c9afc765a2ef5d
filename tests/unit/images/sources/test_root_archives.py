"""Archives of root file systems become images; hostile ones are one error that names the entry."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from ramet.errors import DamagedError, FilesystemError, NotFoundError, UsageError
from ramet.images.layers.limits import DEFAULT_LIMITS
from ramet.images.layers.tar_header import BLOCK_BYTES
from ramet.images.library.library import Library
from ramet.images.sources.load import import_image
from ramet.images.sources.streams import unpacked
from ramet.memory.integrity import digest
from ramet.model.container import main_process
from tests.unit.images.layer_tars import member, tar
from tests.unit.images.library.libraries import seen

pytestmark = pytest.mark.anyio

ROOT = tar(
    [
        member(".", tarfile.DIRTYPE, mode=0o755),
        member("./bin", tarfile.DIRTYPE, mode=0o755),
        member("./bin/tool", data=b"tool" * 5000, mode=0o4755, owner=(7, 2_000_000_000)),
        member("./sbin", tarfile.SYMTYPE, link="bin"),
        member("./bin/other", tarfile.LNKTYPE, link="./bin/tool"),
    ]
)
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": lambda data: gzip.compress(data, 1),
    "zstd": zstandard.ZstdCompressor(level=1).compress,
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": lambda data: bz2.compress(data, 1),
    "two xz streams": lambda data: (
        lzma.compress(data[:700], preset=0) + bytes(8) + lzma.compress(data[700:], preset=0)
    ),
    "two bzip2 streams": lambda data: bz2.compress(data[:700], 1) + bz2.compress(data[700:], 1),
}


@contextmanager
def pipe_of(data: bytes) -> Iterator[int]:
    """A pipe that gives these bytes, to a reader who may leave early."""
    reading, writing = os.pipe()

    def feed() -> None:
        with open(writing, "wb", buffering=0) as pipe:  # noqa: PTH123 - a descriptor
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[pipe.write(rest) :]
            except BrokenPipeError:
                return

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield reading
    finally:
        os.close(reading)
        feeder.join()


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_a_root_becomes_an_image(library: Library, tmp_path: Path, compression: str) -> None:
    source = tmp_path / "My Root.TAR.gz"  # the name says nothing about the content
    source.write_bytes(COMPRESSIONS[compression](ROOT))
    image = (await import_image(library, source)).image
    assert image.name == "my-root:latest"
    files = seen(image)
    assert set(files) == {b"", b"bin", b"bin/tool", b"bin/other", b"sbin"}
    assert files[b"bin/tool"].uid == 7  # type: ignore[attr-defined]
    with pipe_of(COMPRESSIONS[compression](ROOT)) as stdin:
        again = (await import_image(library, "-", name="piped", stdin=stdin)).image
    assert (again.digest, again.bases) == (image.digest, image.bases)


async def test_a_fifo_is_read_as_a_pipe(library: Library, tmp_path: Path) -> None:
    with pipe_of(ROOT) as stdin:
        image = (await import_image(library, f"/proc/self/fd/{stdin}", name="app")).image
    assert b"bin/tool" in seen(image)


async def test_a_root_has_nothing_to_run_by_itself(library: Library, tmp_path: Path) -> None:
    (tmp_path / "app").write_bytes(ROOT)
    image = (await import_image(library, tmp_path / "app")).image
    with pytest.raises(UsageError, match="app:latest has no entrypoint and no command"):
        main_process(image.config, image.name)


async def test_a_pipe_needs_a_name(library: Library) -> None:
    with pipe_of(ROOT) as stdin, pytest.raises(UsageError, match="the image needs a name"):
        await import_image(library, "-", stdin=stdin)


async def test_a_root_with_the_names_of_an_archive_of_images(library: Library, tmp_path: Path) -> None:
    for name in ("blobs/x", "repositories"):
        (tmp_path / "app").write_bytes(tar([member(name, data=b"x"), member("etc/passwd")]))
        assert b"etc/passwd" in seen((await import_image(library, tmp_path / "app")).image)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"#!/bin/sh\n" * 200, bytes(20_000), b"QFI\xfb" + bytes(5000), gzip.compress(b"hello" * 500)],
    ids=["empty", "short", "text", "zeros", "disk", "gzip"],
)
@pytest.mark.parametrize("piped", [False, True])
async def test_what_is_not_understood(library: Library, tmp_path: Path, content: bytes, piped: bool) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(content)
    expected = "nothing that ramet can import .*docker save.*podman:NAME"
    with pipe_of(content) as stdin, pytest.raises(UsageError, match=expected):
        await import_image(library, "-" if piped else source, name="x", stdin=stdin)
    assert library.images() == []


async def test_what_is_not_there(library: Library, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no .*/nothing"):
        await import_image(library, tmp_path / "nothing")


async def test_a_tag_of_a_root_is_a_mistake(library: Library, tmp_path: Path) -> None:
    (tmp_path / "app").write_bytes(ROOT)
    with pytest.raises(UsageError, match="is a root file system, and has no image 'x' to choose"):
        await import_image(library, tmp_path / "app", ref="x")


async def test_a_file_that_grows_while_it_is_read(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "app.tar"
    source.write_bytes(tar([member("large", data=bytes(3_000_000))]))
    pread, calls = os.pread, 0

    def growing(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal calls
        if (calls := calls + 1) == 3:
            with source.open("ab") as file:
                file.write(bytes(1024))
        return pread(descriptor, size, offset)

    monkeypatch.setattr("os.pread", growing)
    with pytest.raises(FilesystemError, match=r"app\.tar changed while it was read"):
        await import_image(library, source)


def header(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(body: bytes) -> bytes:
    return header("pax", tarfile.XHDTYPE, size=len(body)) + body + bytes(-len(body) % BLOCK_BYTES)


def record(key: str, value: str) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest + len(str(rest))))
    return f"{length} {key}={value}\n".encode()


SPARSE = pax(record("GNU.sparse.size", str(10 * 2**40)) + record("GNU.sparse.map", "0,0"))
HOSTILE = {
    "upwards": (header("../x"), r"'\.\./x': it leads upwards"),
    "inner upwards": (header("a/../../x"), r"'a/\.\./\.\./x': it leads upwards"),
    "loop": (
        header("l1", tarfile.SYMTYPE, link="l2") + header("l2", tarfile.SYMTYPE, link="l1") + header("l1/x"),
        "'l1/x': its directory is a loop of links",
    ),
    "through a file": (header("f") + header("f/x"), "'f/x': a parent of it is no directory"),
    "hard link out": (header("h", tarfile.LNKTYPE, link="../x"), "'h': it leads upwards"),
    "hard link to nothing": (header("h", tarfile.LNKTYPE, link="n"), "'h': it is a hard link to 'n'"),
    "10 TB of holes": (SPARSE + header("s"), "'s': it is too large"),
    "10 TB announced": (header("t", size=10 * 2**40), "'t': it is too large"),
    "1 TB announced": (header("t", size=2**40), "'t': the layer's files are too large"),
    "2 GiB of PAX": (header("p", tarfile.XHDTYPE, size=2**31), "an extended header is too large"),
    "2 GiB of a name": (header("p", b"L", size=2**31), "an extended header is too large"),
    "whiteout of .": (header(".wh.."), r"'\.wh\.\.': it is a whiteout of nothing"),
    "whiteout of ..": (header("a/.wh..."), r"'a/\.wh\.\.\.': it is a whiteout of nothing"),
    "whiteout": (header(".wh."), r"'\.wh\.': it is a whiteout of nothing"),
    "unknown type": (header("x", b"Z"), "'x': it is of the type b'Z'"),
    "cut": (header("x", size=5000) + b"x", "cut short"),
    "long name": (pax(record("path", "n" * 300)) + header("x"), "component of its name is too long"),
    "deep": (pax(record("path", "d/" * 2000 + "x")) + header("x"), "it lies too deep"),
    "control characters": (header("\x1b]0;x\x07../../y"), r"'\\x1b\]0;x\\x07\.\./\.\./y': it leads upwards"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("form", ["file", "pipe", "gzip"])
async def test_a_hostile_root_is_one_error(library: Library, tmp_path: Path, case: str, form: str) -> None:
    hostile, error = HOSTILE[case]
    content = header("etc", tarfile.DIRTYPE) + hostile + (b"" if case == "cut" else bytes(1024))
    if form == "gzip":
        content = gzip.compress(content, 1)
    source = tmp_path / "root.tar"
    source.write_bytes(content)
    with pipe_of(content) as stdin, pytest.raises(DamagedError, match=error) as caught:
        await import_image(library, "-" if form == "pipe" else source, name="app", stdin=stdin)
    assert caught.value.message.startswith(("standard input is damaged", f"{source} is damaged"))
    assert caught.value.message.isprintable()
    assert library.images() == []
    assert list(library._places.root.glob(".making-*")) == []
    assert list(library._places.blobs.iterdir()) == []


async def test_an_absolute_name_stays_inside(library: Library, tmp_path: Path) -> None:
    """As Docker and umoci have it: the root of the name is the image's."""
    (tmp_path / "app").write_bytes(header("etc", tarfile.DIRTYPE) + header("/etc/passwd") + bytes(1024))
    assert b"etc/passwd" in seen((await import_image(library, tmp_path / "app")).image)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "xz", "bzip2"])
def test_a_bomb_is_ended_at_its_bound(compression: str) -> None:
    """20 MB of zeros in a few KB: what comes at once, and what comes in all, is bounded."""
    bomb = COMPRESSIONS[compression](bytes(20_000_000))
    assert len(bomb) < 1_000_000
    taken = largest = 0
    with pytest.raises(DamagedError, match="it unpacks to more than"):
        for piece in unpacked([bomb], limit_bytes=5_000_000):
            taken, largest = taken + len(piece), max(largest, len(piece))
    assert taken <= 5_000_000
    assert largest <= 8 * 2**20


@pytest.mark.parametrize("compression", ["xz", "bzip2", "two xz streams", "two bzip2 streams"])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_stream_may_come_in_pieces_and_must_be_whole(compression: str, step: int) -> None:
    data = os.urandom(1500) + bytes(3000)
    packed = COMPRESSIONS[compression](data)

    def read(packed: bytes) -> bytes:
        return b"".join(unpacked(packed[at : at + step] for at in range(0, len(packed), step)))

    assert read(packed) == data
    for end in (7, len(packed) // 3, len(packed) - 1):
        with pytest.raises(DamagedError, match="cut short"):
            read(packed[:end])
    for at in (len(packed) // 4, len(packed) - 20):
        changed = bytearray(packed)
        changed[at] ^= 0x55
        with pytest.raises(DamagedError):
            read(bytes(changed))


def test_xz_that_wants_too_much_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**16}]
    changed = bytearray(lzma.compress(b"x", filters=filters))
    # The size of the dictionary is one byte of the block's header: 40 says 4 GiB.
    changed[16] = 40
    length = (changed[12] + 1) * 4
    changed[12 + length - 4 : 12 + length] = zlib.crc32(changed[12 : 12 + length - 4]).to_bytes(4, "little")
    with pytest.raises(DamagedError, match="can't be decompressed: Memory usage limit"):
        b"".join(unpacked([bytes(changed)]))


async def test_a_million_empty_files(tmp_path: Path) -> None:
    """Of 5,000, with a bound of 5,000 instead of 2,000,000."""
    limits = replace(DEFAULT_LIMITS, total_entries=5000)
    library = Library(tmp_path / "images", part_digest=digest, limits=limits)
    block = bytearray(header("f00000"))
    count = limits.total_entries + 1

    def archive() -> bytes:
        out = bytearray()
        for number in range(count):
            name = b"f%05d" % number
            change = sum(name) - sum(block[:6])
            block[:6] = name
            block[148:156] = b"%06o\0 " % (int(bytes(block[148:154]), 8) + change)
            out += block
        return bytes(out)

    (tmp_path / "many").write_bytes(archive())
    with pytest.raises(DamagedError, match="'f05000': the image has too many entries"):
        await import_image(library, tmp_path / "many")
