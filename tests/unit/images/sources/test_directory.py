"""Directories become images as they are: owners, attributes, links, holes; what changes is an error."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import FilesystemError, UnavailableError, UsageError
from ramet.images.layers.limits import DEFAULT_LIMITS
from ramet.images.library.library import Library
from ramet.images.sources.directory import Skipped, read_directory
from ramet.images.sources.load import import_image
from tests.unit.images.erofs_reader import File
from tests.unit.images.library.libraries import bytes_in, seen

pytestmark = pytest.mark.anyio

ROOT = os.geteuid() == 0
ACL = bytes.fromhex(
    "02000000 01000600 ffffffff 02000700 e8030000 04000400 ffffffff 10000700 ffffffff 20000400 ffffffff"
)
CAPABILITY = bytes.fromhex("01000002 00200000 00000000 00000000 00000000")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "rootfs"
    directory.mkdir(mode=0o755)
    return directory


def archive(source: Path) -> bytes:
    return b"".join(read_directory(source, Skipped()))


async def imported(library: Library, source: Path) -> dict[bytes, Any]:
    return seen((await import_image(library, source, name="app")).image)


def facts(path: Path, file: File) -> None:
    found = path.lstat()
    assert (file.mode, file.uid, file.gid, file.links) == (
        found.st_mode,
        found.st_uid,
        found.st_gid,
        found.st_nlink,
    ), path
    assert file.mtime[0] * 10**9 + file.mtime[1] == found.st_mtime_ns, path
    names = os.listxattr(path, follow_symlinks=False)
    expected = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
    assert file.xattrs == expected, path


async def test_files_are_as_they_were(library: Library, source: Path) -> None:
    (source / "bin").mkdir()
    tool = source / "bin" / "tool"
    tool.write_bytes(b"#!" * 5000)
    tool.chmod(0o4755)
    (source / "bin" / "other").hardlink_to(tool)
    (source / "a").hardlink_to(tool)
    (source / "link").symlink_to("../../etc/passwd")
    (source / "dangling").symlink_to("/nowhere/at/all")
    (source / "loop").symlink_to("loop")
    os.mkfifo(source / "pipe", 0o640)
    (source / "tmp").mkdir()
    (source / "tmp").chmod(0o1777)
    for name in (b"\xff\xfe", b"new\nline\\", b"n" * 255, b"- -", b"=", b"..."):
        Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(name)
    deep = source.joinpath(*(["d" * 200] * 12))
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep")
    with suppress(OSError):  # some filesystems have none for users
        os.setxattr(tool, "user.note", b"\0\xff")
        os.setxattr(source / "tmp", "user.empty", b"")
    for path, seconds in ((tool, -1.5), (source / "tmp", 4102444800.25), (source / "bin", 1.000000001)):
        os.utime(path, ns=(0, int(seconds * 10**9)))
    files = await imported(library, source)
    for path in [source, *source.rglob("*")]:
        name = os.fsencode(path)[len(os.fsencode(source)) + 1 :]
        facts(path, files.pop(name))
    assert files == {}
    again = await imported(library, source)
    assert again[b"bin/tool"].data == b"#!" * 5000
    assert again[b"link"].data == b"../../etc/passwd"
    assert again[b"d" + b"d" * 199 + (b"/" + b"d" * 200) * 11 + b"/file"].data == b"deep"


@pytest.mark.skipif(not ROOT, reason="only root makes devices and gives files away")
async def test_what_only_root_can_make(library: Library, source: Path) -> None:
    os.mknod(source / "tty", stat.S_IFCHR | 0o620, os.makedev(4095, 0xFFFFF))
    os.mknod(source / "disk", stat.S_IFBLK | 0o660, os.makedev(8, 300))
    os.mknod(source / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    (source / "ping").write_bytes(b"x")
    os.chown(source / "ping", 1000, 2_000_000_000)
    (source / "acl").write_bytes(b"")
    (source / "acls").mkdir()
    os.setxattr(source / "ping", "security.capability", CAPABILITY)
    os.setxattr(source / "acl", "system.posix_acl_access", ACL)
    os.setxattr(source / "acls", "system.posix_acl_default", ACL)
    os.setxattr(source / "acls", "trusted.t", b"t")
    (source / "l").symlink_to("x")
    os.setxattr(source / "l", "trusted.link", b"1", follow_symlinks=False)
    os.chown(source / "l", 7, 8, follow_symlinks=False)
    image = (await import_image(library, source)).image
    files: dict[bytes, Any] = dict(seen(image))
    assert image.record.dropped_devices == 1
    assert b"whiteout" not in files
    for name in ("tty", "disk", "ping", "acl", "acls", "l"):
        facts(source / name, files[name.encode()])
    assert files[b"tty"].device == (4095, 0xFFFFF)


async def test_holes_stay_holes(library: Library, source: Path) -> None:
    sizes = {"begin": 20_000_000, "hole": 10_000_000, "small": 3000}
    for name, size in sizes.items():
        with (source / name).open("wb") as file:
            if name != "hole":
                file.write(b"data" * 500)
            if name == "begin":
                file.seek(10_000_000)
                file.write(b"x" * 100_000)
            file.truncate(size)
    files = await imported(library, source)
    for name in sizes:
        assert files[name.encode()].data == (source / name).read_bytes()
    assert bytes_in(library._places.root) < 2_000_000
    assert len(archive(source)) < 400_000


async def test_a_file_with_too_many_holes_is_read_whole(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (source / "f").open("wb") as file:
        for at in range(0, 40 * 65536, 65536):
            file.seek(at)
            file.write(b"x")
    few = archive(source)
    limits = replace(DEFAULT_LIMITS, sparse_extents=10)
    monkeypatch.setattr("ramet.images.sources.directory.DEFAULT_LIMITS", limits)
    assert len(few) < 400_000 < len(archive(source))


async def test_the_same_content_gives_the_same_bytes(library: Library, tmp_path: Path) -> None:
    for name in ("1", "2"):
        root = tmp_path / name
        root.mkdir(mode=0o755)
        for file in ("b", "a", "c") if name == "1" else ("c", "b", "a"):
            (root / file).write_text(file)
            os.utime(root / file, (5, 5))
        os.utime(root, (5, 5))
    assert archive(tmp_path / "1") == archive(tmp_path / "2")
    images = [(await import_image(library, tmp_path / name, name=name)).image for name in ("1", "2")]
    assert images[0].digest == images[1].digest


async def test_sockets_are_left_out_and_counted(
    library: Library, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        (source / "file").write_bytes(b"")
        done = await import_image(library, source)
    assert done.skipped == Skipped(sockets=1)
    assert set(seen(done.image)) == {b"", b"file"}


@contextmanager
def mounted(*arguments: object) -> Iterator[None]:
    """A mount, whose last argument is its place."""
    if not ROOT:
        pytest.skip("only root mounts")
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, timeout=30)
    if done.returncode:
        pytest.skip(f"mounting isn't allowed here: {done.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(arguments[-1])], check=True, timeout=30)


async def test_other_filesystems_inside_are_not_entered(library: Library, source: Path) -> None:
    (source / "mnt").mkdir()
    (source / "bound").mkdir()
    (source / "file").write_bytes(b"below")
    with mounted("-t", "tmpfs", "none", source / "mnt"):
        (source / "mnt" / "inside").write_bytes(b"x")
        with (
            mounted("--bind", source / "mnt", source / "bound"),
            mounted("--bind", source / "mnt" / "inside", source / "file"),
        ):
            done = await import_image(library, source)
    assert done.skipped == Skipped(mounts=3)
    assert set(seen(done.image)) == {b"", b"mnt", b"bound"}


async def test_a_mount_of_the_same_filesystem_is_not_entered_either(library: Library, source: Path) -> None:
    (source / "etc").mkdir()
    (source / "etc" / "x").write_bytes(b"x")
    (source / "again").mkdir()
    with mounted("--bind", source / "etc", source / "again"):
        done = await import_image(library, source)
    assert done.skipped == Skipped(mounts=1)
    assert set(seen(done.image)) == {b"", b"etc", b"etc/x", b"again"}


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite", "replace", "vanish", "directory", "moved"])
async def test_what_changes_while_it_is_read_is_named(
    library: Library, source: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "d").mkdir()
    target = source / "d" / "data"
    target.write_bytes(b"x" * 3_000_000)
    (source / "d" / "other").write_bytes(b"o")
    os.utime(target, (1, 1))
    pread, calls = os.pread, 0

    def changing(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal calls
        piece = pread(descriptor, size, offset)
        if size >= 500_000 and (calls := calls + 1) == 1:
            match change:
                case "grow":
                    with target.open("ab") as file:
                        file.write(b"y")
                case "shrink":
                    os.truncate(target, 10)
                case "rewrite":
                    target.write_bytes(b"z" * 3_000_000)
                    os.utime(target, (1, 1))  # who hides a change by its time can't hide this one's
                case "replace":
                    (source / "d" / "other").unlink()
                    (source / "d" / "other").symlink_to("/etc/passwd")
                case "vanish":
                    (source / "d" / "other").unlink()
                case "directory":
                    (source / "d" / "new").write_bytes(b"")
                case "moved":
                    (source / "d").rename(tmp_path / "elsewhere")
        return piece

    monkeypatch.setattr("os.pread", changing)
    with pytest.raises(FilesystemError, match="changed while it was read") as caught:
        await import_image(library, source)
    named = {"replace": "d", "vanish": "d/other", "directory": "d", "moved": ""}.get(change, "d/data")
    assert caught.value.message.startswith(f"{source / named}") or change in ("replace", "moved")
    assert library.images() == []
    assert list(library._places.root.glob(".making-*")) == []


def test_a_name_that_becomes_a_link_is_not_followed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at a name and its opening somebody puts a link there."""
    secret = source.parent / "secret"
    secret.write_bytes(b"secret")
    (source / "file").write_bytes(b"plain!")
    real = os.stat

    def racing(path: Any, **keywords: Any) -> os.stat_result:
        found = real(path, **keywords)
        if path == b"file":
            (source / "file").unlink()
            (source / "file").symlink_to(secret)
        return found

    monkeypatch.setattr("os.stat", racing)
    with pytest.raises(FilesystemError, match="file changed while it was read"):
        archive(source)


async def test_a_fifo_that_takes_a_files_place_does_not_hang(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "file").write_bytes(b"plain!")
    real = os.stat

    def racing(path: Any, **keywords: Any) -> os.stat_result:
        found = real(path, **keywords)
        if path == b"file":
            (source / "file").unlink()
            os.mkfifo(source / "file")
        return found

    monkeypatch.setattr("os.stat", racing)
    with pytest.raises(FilesystemError, match="file changed while it was read"):
        archive(source)


@pytest.mark.parametrize("name", [".wh.x", ".wh..wh..opq", ".wh..wh.plnk"])
async def test_a_name_that_means_a_deletion_is_refused(library: Library, source: Path, name: str) -> None:
    (source / name).write_bytes(b"")
    with pytest.raises(UnavailableError, match=r"rootfs/\.wh\..* something is deleted"):
        await import_image(library, source)


async def test_an_attribute_that_no_archive_can_have(library: Library, source: Path) -> None:
    (source / "f").write_bytes(b"")
    try:
        os.setxattr(source / "f", "user.a=b", b"x")
    except OSError as error:
        pytest.skip(f"this filesystem has no attributes for users: {error.strerror}")
    with pytest.raises(UnavailableError, match=r"rootfs/f has an extended attribute with the name user\.a=b"):
        await import_image(library, source)


async def test_an_empty_directory_is_refused(library: Library, source: Path) -> None:
    with pytest.raises(UsageError, match="rootfs is an empty directory"):
        await import_image(library, source)


async def test_a_link_to_a_directory_is_that_directory(
    library: Library, source: Path, tmp_path: Path
) -> None:
    (source / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(source)
    assert b"file" in seen((await import_image(library, tmp_path / "link")).image)


def test_a_reader_that_stops_leaves_nothing_open(source: Path) -> None:
    for name in "abc":
        (source / name).mkdir()
        (source / name / "f").write_bytes(b"x" * 3_000_000)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for count in range(1, 12):
        chunks = read_directory(source, Skipped())
        for _ in range(count):
            with suppress(StopIteration):
                next(chunks)
        chunks.close()  # type: ignore[attr-defined]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_deep_tree_needs_few_descriptors(source: Path) -> None:
    top = os.open(source, os.O_RDONLY)
    here = top
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        if here != top:
            os.close(here)
        here = below
    os.close(here)
    os.close(top)
    before = most = len(list(Path("/proc/self/fd").iterdir()))  # other tests' fixtures have some open
    try:
        for _ in read_directory(source, Skipped()):
            most = max(most, len(list(Path("/proc/self/fd").iterdir())))
    finally:  # too deep for who removes the tests' directories
        subprocess.run(["rm", "-rf", source / "d"], check=True, timeout=60)
    assert most < before + 40


def test_as_another_user_what_cannot_be_read_is_named() -> None:
    if not ROOT:
        pytest.skip("only root becomes somebody else")
    said: list[str] = []

    def work(source: Path) -> None:  # the identity of a thread: Linux has one for each
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall(119, -1, 65534, -1)  # setresgid
        libc.syscall(117, -1, 65534, -1)  # setresuid
        try:
            archive(source)
        except FilesystemError as error:
            said.append(str(error))

    # Not in the tests' directory, which other users can't reach.
    with tempfile.TemporaryDirectory(prefix="ramet-test-") as place:
        source = Path(place)
        source.chmod(0o755)
        (source / "etc").mkdir(mode=0o755)
        (source / "etc" / "shadow").write_bytes(b"secret")
        (source / "etc" / "shadow").chmod(0o600)
        worker = threading.Thread(target=work, args=(source,))
        worker.start()
        worker.join()
        assert len(said) == 1
        assert f"can't read {source / 'etc' / 'shadow'}: Permission denied" in said[0]
        assert "as root for instance" in said[0]
