"""Imports that end early: cancelled, killed, out of space. The library is as before, and nothing stays."""

from __future__ import annotations

import gzip
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from ramet.errors import FilesystemError, UsageError
from ramet.images.library.library import Library
from ramet.images.sources.load import import_image
from tests.unit.images.layer_tars import member, tar
from tests.unit.images.library.libraries import library_in, seen
from tests.unit.images.sources.archives import LAYERS, archive, docker_save

pytestmark = pytest.mark.anyio

_CHILD = """
import sys, anyio
from pathlib import Path
from ramet.images.library.library import Library
from ramet.images.sources.load import import_image
from ramet.memory.integrity import digest
anyio.run(lambda: import_image(Library(Path(sys.argv[1]), part_digest=digest), "-", name="app"))
"""


def noise(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


@pytest.mark.timing
async def test_a_fifo_that_nobody_writes_to_can_be_cancelled(library: Library, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with anyio.move_on_after(0.5) as scope, anyio.fail_after(30):
        await import_image(library, tmp_path / "fifo", name="app")
    assert scope.cancelled_caught
    assert library.images() == []


async def test_a_fifo_is_a_pipe(library: Library, tmp_path: Path) -> None:
    fifo, root = tmp_path / "fifo", tmp_path / "root.tar"
    os.mkfifo(fifo)
    root.write_bytes(tar([member("etc/data", data=noise(100_000))]))
    with subprocess.Popen(["sh", "-c", f"sleep 0.3; cat {root} > {fifo}"]):
        made = await import_image(library, fifo, name="app")
    assert made.image.name == "app:latest"


@pytest.mark.parametrize("name", ["Bad Name", "UPPER", "-x", "a/b:c d", "builtin", "builtin:latest", "bare"])
async def test_a_name_that_could_not_be_asked_for(library: Library, tmp_path: Path, name: str) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(tar([member("x")]))
    with pytest.raises(UsageError, match="can't be"):
        await import_image(library, path, name=name)
    assert library.images() == []


async def test_a_path_called_as_an_image_of_ramets(library: Library, tmp_path: Path) -> None:
    (tmp_path / "probe" / "etc").mkdir(parents=True)
    with pytest.raises(UsageError, match="ramet makes itself"):
        await import_image(library, tmp_path / "probe")
    assert library.images() == []


@pytest.mark.timing
@pytest.mark.parametrize("begun", ["nothing", "root", "archive"])
async def test_a_silent_pipe_can_be_cancelled(library: Library, tmp_path: Path, begun: str) -> None:
    saved = archive(docker_save({"app:1": LAYERS}), tmp_path / "saved.tar").read_bytes()
    # More than is looked at, so that the rest is waited for.
    root = tar([member("etc/data", data=noise(100_000)), member("x")])
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        first = {"nothing": b"", "root": root[:60_000], "archive": saved[:-600]}[begun]
        os.write(writing, first) if first else 0
        with anyio.move_on_after(0.5) as scope, anyio.fail_after(30):
            await import_image(library, "-", name="app", stdin=reading)
        assert scope.cancelled_caught
    finally:
        os.close(reading)
        os.close(writing)
    assert library.images() == []
    assert list(library._places.root.glob(".making-*")) == []


@pytest.mark.timing
@pytest.mark.parametrize("form", ["root", "archive"])
async def test_what_a_killed_import_leaves_is_removed(library: Library, tmp_path: Path, form: str) -> None:
    saved = archive(
        docker_save({"app:1": [tar([member("f", data=noise(4_000_000))])]}), tmp_path / "saved.tar"
    )
    content = saved.read_bytes() if form == "archive" else tar([member("f", data=noise(4_000_000))])
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(library._places.root)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert child.stdin is not None
        child.stdin.write(content[: len(content) // 2])  # the pipe is full until this is taken
        child.stdin.flush()
        deadline = time.monotonic() + 60
        while not list(library._places.root.glob(".making-*")):
            assert time.monotonic() < deadline
            await anyio.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait(60)
        child.communicate()
    assert list(library._places.root.glob(".making-*")) != []
    (tmp_path / "next.tar").write_bytes(tar([member("etc/motd", data=b"m")]))
    image = (await import_image(library, tmp_path / "next.tar")).image
    assert b"etc/motd" in seen(image)
    assert list(library._places.root.glob(".making-*")) == []
    assert len(library.images()) == 1


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    place = tmp_path / "small"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=8m", "none", str(place)]
    done = subprocess.run(["mount", *options], capture_output=True, timeout=30)
    if done.returncode:
        pytest.skip(f"mounting isn't allowed here: {done.stderr.decode()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=30)


@pytest.mark.parametrize("form", ["root", "archive", "directory"])
async def test_a_full_disk_is_named(small: Path, tmp_path: Path, form: str) -> None:
    library = library_in(small)
    (tmp_path / "little.tar").write_bytes(tar([member("etc/motd", data=b"m")]))
    await import_image(library, tmp_path / "little.tar")
    source = tmp_path / "app"
    large = noise(12_000_000)
    if form == "directory":
        source.mkdir()
        (source / "large").write_bytes(large)
    else:
        layer = tar([member("large", data=large)])
        archive(docker_save({"app:1": [layer]}), source) if form == "archive" else source.write_bytes(layer)
        source.write_bytes(gzip.compress(source.read_bytes(), 1))
    with pytest.raises(FilesystemError, match=r"small.*(No space left on device|are free)") as caught:
        await import_image(library, source)
    assert "free some space on that filesystem" in str(caught.value)
    assert [image.name for _, image in library.images()] == ["little:latest"]
    assert library.damage(library.get("little"), reads_all=True) == []
    assert list(library._places.root.glob(".making-*")) == []


async def test_a_terminal_is_no_archive(library: Library) -> None:
    master, terminal = pty.openpty()
    try:
        with pytest.raises(UsageError, match="standard input is a terminal"):
            await import_image(library, "-", name="app", stdin=terminal)
    finally:
        os.close(master)
        os.close(terminal)


async def test_a_file_as_standard_input_is_read_in_place(library: Library, tmp_path: Path) -> None:
    with archive(docker_save({"app:1": LAYERS}), tmp_path / "saved.tar").open("rb") as file:
        image = (await import_image(library, "-", stdin=file.fileno())).image
    assert image.name == "app:1"
    assert b"bin/tool" in seen(image)
