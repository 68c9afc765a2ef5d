"""EROFS images: another reader, `fsck.erofs` and the kernel find what the layers had, in the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import DamagedError, UsageError
from ramet.images.erofs.blob import mark, seal, shared_layers
from ramet.images.erofs.crc32c import crc32c
from ramet.images.erofs.format import DEVICE_LIMIT
from ramet.images.layers.contents import LayerContents
from ramet.images.layers.merge import Merge
from ramet.images.layers.read import add_layer
from ramet.images.layers.tree import walk
from tests.unit.images.erofs_reader import File, Reader
from tests.unit.images.layer_tars import Member, Merged, image_of, member, merged, tar

DIR, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
PLAIN, INLINE, CHUNKED = 0, 2, 4
SIZES = [0, 1, 100, 3000, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193, 50_000]
ACL = bytes.fromhex(
    "02000000 01000600 ffffffff 02000700 e8030000 04000400 ffffffff 10000700 ffffffff 20000400 ffffffff"
)
CAPABILITY = bytes.fromhex("01000002 00200000 00000000 00000000 00000000")


def nasty_layers() -> list[list[Member]]:
    lower = [
        member(".", DIR, mode=0o755, mtime="1700000000.25"),
        *[
            member(f"sizes/{size}", data=bytes(i % 251 for i in range(size)), mtime=f"{size}.5")
            for size in SIZES
        ],
        *[member(f"many/{'n' * (number % 200)}{number}", data=b"%d" % number) for number in range(600)],
        member("usr/bin/tool", data=b"#!" * 4000, mode=0o4755, owner=(1000, 2_000_000_000)),
        member("bin", LINK, link="usr/bin"),
        member("dev/tty", tarfile.CHRTYPE, device=(5, 300), mode=0o666),
        member("dev/disk", tarfile.BLKTYPE, device=(4095, 0xFFFFF), mode=0o660),
        member("pipe", tarfile.FIFOTYPE),
        member("tmp", DIR, mode=0o1777),
        member("old", data=b"old", mtime="-1.5"),
        member("future", data=b"new", mtime="4102444800.123456789"),
        member("caps", data=b"x" * 5000, mode=0o755, xattrs={b"security.capability": CAPABILITY}),
        member("acl", data=b"x", mode=0o674, xattrs={b"system.posix_acl_access": ACL}),
        member("acls", DIR, mode=0o755, xattrs={b"system.posix_acl_default": ACL, b"trusted.t": b"\0\xff"}),
        member("empty-attribute", xattrs={b"user.empty": b""}),
        member(
            "large-attribute",
            data=b"inline?",
            xattrs={b"user.large": b"\xfe" * 3000, b"user.more": b"m" * 2000},
        ),
        *[
            member(
                f"labelled/{number}",
                data=b"x",
                xattrs={b"security.selinux": b"system_u:object_r:bin_t:s0", b"user.k": b"v"},
            )
            for number in range(50)
        ],
        member(b"names/\xff\xfe", data=b"bytes"),
        member("names/new\nline\\", data=b"n"),
        member("names/" + "l" * 255),
        *[member(f"names/{name}", DIR) for name in ("+", "-", ".a", "..b", "...", ".\x01", "!")],
        member("long-link", LINK, link="x" * 4095),
        member("link", LINK, link="t"),
        member("gone/a"),
        member("replaced/x"),
        member("becomes-directory"),
    ]
    upper = [
        member(".wh.gone"),
        member("replaced", data=b"a file"),
        member("becomes-directory", DIR),
        member("becomes-directory/x"),
        member("bin/new", data=b"n" * 9000),
        member("usr/bin/again", HARD, link="bin/tool"),
        member("sizes/50000", data=b"over" * 5000),
        member("h1", HARD, link="link"),
    ]
    return [lower, upper]


def compare(found: dict[bytes, File], tree: Merged) -> None:
    expected = dict(walk(tree.root))
    assert set(found) == set(expected)
    nids: dict[int, int] = {}
    for path, node in expected.items():
        file = found[path]
        assert file.mode == node.file_type | node.permissions, path
        assert (file.uid, file.gid, file.mtime) == (node.uid, node.gid, node.mtime), path
        assert file.xattrs == (node.xattrs or {}), path
        assert file.device == node.device, path
        assert nids.setdefault(id(node), file.nid) == file.nid
        if node.file_type == stat.S_IFREG:
            assert file.data == tree.data(node), path
            if len(file.data) > 4096:
                assert file.layout in (PLAIN, CHUNKED)  # else DAX can't map it
        elif node.file_type == stat.S_IFLNK:
            assert file.data == node.link, path


def blob_of(tree: Merged, layer: int) -> bytes:
    size = seal(tree.contents[layer], tree.pages[layer].fileno())
    blob = os.pread(tree.pages[layer].fileno(), size + 1, 0)
    assert len(blob) == size
    return blob


def test_another_reader_finds_what_the_layers_had(tmp_path: Path) -> None:
    with merged([tar(layer) for layer in nasty_layers()]) as tree:
        facts = image_of(tree, tmp_path / "image")
        image = (tmp_path / "image").read_bytes()
        compare(Reader(image).walk(), tree)
        assert facts.size_bytes == len(image)
        assert facts.digest == f"sha256:{hashlib.sha256(image).hexdigest()}"
        for devices in ([0], [1], [0, 1], [1, 0]):
            image_of(tree, tmp_path / "image", devices)
            reader = Reader((tmp_path / "image").read_bytes(), *[blob_of(tree, layer) for layer in devices])
            compare(reader.walk(), tree)


def test_the_same_layers_give_the_same_bytes(tmp_path: Path) -> None:
    plain = [tar(layer) for layer in nasty_layers()]
    forms = [plain, [gzip.compress(layer) for layer in plain], [zstandard.compress(layer) for layer in plain]]
    digests = set()
    for form in forms:
        for step in (700, 10**7):
            with merged(form, step=step) as tree:
                digests.add((image_of(tree, tmp_path / "image").digest, tree.contents[0].digest))
    assert len(digests) == 1


def test_an_empty_image(tmp_path: Path) -> None:
    with merged([tar([])]) as tree:
        image_of(tree, tmp_path / "image")
        assert set(Reader((tmp_path / "image").read_bytes()).walk()) == {b""}


def test_attributes_that_many_files_have_are_written_once(tmp_path: Path) -> None:
    label = b"system_u:object_r:bin_t:s0" * 10
    layer = [member(f"{number:04}", xattrs={b"security.selinux": label}) for number in range(500)]
    with merged([tar(layer)]) as tree:
        image_of(tree, tmp_path / "image")
    image = (tmp_path / "image").read_bytes()
    assert image.count(label) == 1
    assert all(
        file.xattrs == {b"security.selinux": label} for path, file in Reader(image).walk().items() if path
    )


def test_more_shared_attributes_than_their_count_can_say(tmp_path: Path) -> None:
    xattrs = {b"user.number%03d" % number: b"value" for number in range(300)}
    with merged(
        [tar([member("a", xattrs=xattrs), member("b", xattrs=xattrs), member("c", xattrs=xattrs)])]
    ) as tree:
        image_of(tree, tmp_path / "image")
        compare(Reader((tmp_path / "image").read_bytes()).walk(), tree)


@pytest.mark.deep
def test_sixty_thousand_names_in_one_directory(tmp_path: Path) -> None:
    with merged([tar([member(f"d/{number}") for number in range(60_000)], tarfile.USTAR_FORMAT)]) as tree:
        image_of(tree, tmp_path / "image")
        assert len(Reader((tmp_path / "image").read_bytes()).walk()) == 60_002


_trees = st.dictionaries(
    st.lists(
        st.binary(min_size=1, max_size=255).filter(
            lambda name: not set(name) & {0, 47} and not name.startswith(b".") and name.strip(b" ") == name
        ),
        min_size=1,
        max_size=3,
    ).map(b"/".join),
    st.tuples(
        st.integers(0, 9000),
        st.dictionaries(
            st.sampled_from([b"user.a", b"trusted.b", b"security.c"]), st.binary(max_size=3900), max_size=3
        ),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(_trees)
def test_any_tree_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, files: dict[bytes, tuple[int, dict[bytes, bytes]]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.erofs"
    layer = [
        member(
            b"f/"
            + b"/".join(b"d" + part for part in name.split(b"/")[:-1])
            + b"/f"
            + name.split(b"/")[-1][:254],
            data=bytes(size),
            xattrs=xattrs,
        )
        for name, (size, xattrs) in files.items()
    ]
    try:
        with merged([tar(layer)]) as tree:
            image_of(tree, path)
            compare(Reader(path.read_bytes()).walk(), tree)
    except DamagedError as error:
        assert "too long" in error.message  # noqa: PT017


def test_a_blob_depends_on_its_layer_alone(tmp_path: Path) -> None:
    common = tar(nasty_layers()[0])
    with (
        merged([common]) as alone,
        merged([tar([member("x", data=b"x" * 9000)]), common, tar(nasty_layers()[1])]) as other,
    ):
        blob = blob_of(alone, 0)
        assert blob_of(other, 1) == blob
        image_of(alone, tmp_path / "a", [0])
        image_of(other, tmp_path / "b", [1])
        compare(Reader((tmp_path / "a").read_bytes(), blob).walk(), alone)
        compare(Reader((tmp_path / "b").read_bytes(), blob).walk(), other)
    blocks, digest = len(blob) // 4096 - 1, f"sha256:{hashlib.sha256(blob[:-4096]).hexdigest()}"
    assert blob[-4096:] == mark(blocks, digest)


def test_a_blob_that_is_there_already_is_placed_and_not_written(tmp_path: Path) -> None:
    layer = tar(nasty_layers()[0])
    with merged([layer]) as first:
        expected = image_of(first, tmp_path / "a", [0])
    merge = Merge()
    with (tmp_path / "small").open("w+b") as small, (tmp_path / "b").open("w+b") as image:
        contents = LayerContents(0, pages=None, small=small.fileno())
        add_layer(merge, contents, [layer], name="layer")
        from ramet.images.erofs.image import write_image

        assert write_image(merge.root, {0: contents}, image.fileno(), devices=[0]) == expected


def test_large_layers_are_shared_and_five_at_most() -> None:
    mib = 256
    assert shared_layers({0: 16 * mib, 1: 16 * mib - 1, 2: 0}) == (0,)
    assert shared_layers({number: (20 + number % 3) * mib for number in range(9)}) == (1, 2, 4, 5, 8)


def test_more_devices_than_the_table_holds(tmp_path: Path) -> None:
    with merged([tar([])]) as tree, pytest.raises(UsageError, match="further devices at most"):
        image_of(tree, tmp_path / "image", range(DEVICE_LIMIT + 1))


def test_crc32c_is_the_kernels() -> None:
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283  # RFC 3720's own example inverts


def fsck(image: Path, devices: Sequence[Path] = ()) -> None:
    program = shutil.which("fsck.erofs") or pytest.skip("no fsck.erofs here (Debian: erofs-utils)")
    options = [f"--device={device}" for device in devices]
    done = subprocess.run([program, *options, image], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<E>" not in done.stdout + done.stderr


def test_fsck_erofs_finds_nothing(tmp_path: Path) -> None:
    with merged([tar(layer) for layer in nasty_layers()]) as tree:
        image_of(tree, tmp_path / "image")
        fsck(tmp_path / "image")
        (tmp_path / "blob").write_bytes(blob_of(tree, 0))
        image_of(tree, tmp_path / "image", [0])
        fsck(tmp_path / "image", [tmp_path / "blob"])


@contextmanager
def mounted(image: Path, where: Path, *options: str) -> Iterator[Path]:
    if os.geteuid() != 0 or "erofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("mounting EROFS needs root and a kernel that has it")
    where.mkdir()
    done = subprocess.run(
        ["mount", "-t", "erofs", "-o", ",".join(("ro", *options)), image, where],
        capture_output=True,
        text=True,
        timeout=30,
    )
    if done.returncode:
        if "permi" in done.stderr or "loop device" in done.stderr:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        raise AssertionError(done.stderr)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True, timeout=30)


@contextmanager
def block_device(file: Path) -> Iterator[str]:
    """A loop device: beside an image on a block device, Linux takes block devices only."""
    if os.geteuid() != 0:
        pytest.skip("loop devices are root's")
    done = subprocess.run(["losetup", "-r", "-f", "--show", file], capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"no loop device here: {done.stderr.strip()}")
    try:
        yield done.stdout.strip()
    finally:
        subprocess.run(["losetup", "-d", done.stdout.strip()], check=True, timeout=30)


def seen(root: Path) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(root)
    for directory, names, files in os.walk(top):
        for path in [directory, *(directory + b"/" + name for name in [*names, *files])]:
            facts = os.lstat(path)
            kind = stat.S_IFMT(facts.st_mode)
            data = b""
            if kind == stat.S_IFREG:
                data = Path(os.fsdecode(path)).read_bytes()
            elif kind == stat.S_IFLNK:
                data = os.fsencode(Path(os.fsdecode(path)).readlink())
            xattrs = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            }
            size = facts.st_size if kind == stat.S_IFREG else 0
            relative = b"" if path == top else os.path.relpath(path, top)
            found[relative] = (
                facts.st_mode,
                facts.st_uid,
                facts.st_gid,
                facts.st_mtime_ns,
                facts.st_nlink,
                facts.st_rdev,
                size,
                data,
                xattrs,
            )
    return found


def test_the_kernel_sees_what_the_layers_had(tmp_path: Path) -> None:
    with merged([tar(layer) for layer in nasty_layers()]) as tree:
        image_of(tree, tmp_path / "image")
        reader = Reader((tmp_path / "image").read_bytes()).walk()
    with mounted(tmp_path / "image", tmp_path / "mnt") as root:
        found = seen(root)
    assert set(found) == set(reader)
    for path, file in reader.items():
        mode, uid, gid, mtime, links, device, _, data, xattrs = found[path]
        assert (mode, uid, gid, links) == (file.mode, file.uid, file.gid, file.links), path
        assert mtime == file.mtime[0] * 10**9 + file.mtime[1], path
        assert isinstance(device, int)
        assert (os.major(device), os.minor(device)) == file.device, path
        assert {os.fsencode(name): value for name, value in xattrs.items()} == file.xattrs, path  # type: ignore[attr-defined]
        if not stat.S_ISDIR(file.mode):
            assert data == file.data, path


def test_the_kernel_sees_what_an_image_of_mkfs_erofs_has(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can extract devices and owners, for mkfs.erofs to read")
    program = shutil.which("mkfs.erofs") or pytest.skip("no mkfs.erofs here (Debian: erofs-utils)")
    # mkfs.erofs 1.5 fails at a name of 255 bytes, ext4 holds no more than 4 KiB of attributes.
    members = [
        pair for pair in nasty_layers()[0] if pair[0].name not in ("large-attribute", "names/" + "l" * 255)
    ]
    lower = tar(members)
    (tmp_path / "tree").mkdir()
    packed = subprocess.run(
        ["tar", "-x", "--xattrs", "--xattrs-include=*", "--same-owner", "-p", "--numeric-owner"],
        cwd=tmp_path / "tree",
        input=lower,
        capture_output=True,
        timeout=60,
    )
    if packed.returncode:
        pytest.skip(f"this filesystem can't hold the tree: {packed.stderr.decode(errors='replace')[-200:]}")
    subprocess.run(
        [program, tmp_path / "theirs", tmp_path / "tree"], check=True, capture_output=True, timeout=60
    )
    with merged([lower]) as tree:
        image_of(tree, tmp_path / "ours")
    with (
        mounted(tmp_path / "ours", tmp_path / "m1") as ours,
        mounted(tmp_path / "theirs", tmp_path / "m2") as theirs,
    ):
        first, second = seen(ours), seen(theirs)
    # Directories that no layer names have the time of their extraction there.
    named = {os.fsencode(info.name) for info, _ in members}
    for path in set(first) | set(second):
        left, right = list(first[path]), list(second[path])
        if path and path not in named:
            left[3] = right[3] = 0
        assert left == right, path


def test_two_images_over_one_blob_in_the_kernel(tmp_path: Path) -> None:
    common = tar(nasty_layers()[0])
    with merged([common]) as alone, merged([common, tar(nasty_layers()[1])]) as other:
        (tmp_path / "blob").write_bytes(blob_of(alone, 0))
        image_of(alone, tmp_path / "a", [0])
        image_of(other, tmp_path / "b", [0])
        image_of(other, tmp_path / "whole")
        with (
            block_device(tmp_path / "blob") as device,
            mounted(tmp_path / "b", tmp_path / "m1", f"device={device}") as shared,
            mounted(tmp_path / "whole", tmp_path / "m2") as whole,
            mounted(tmp_path / "a", tmp_path / "m3", f"device={device}") as root,
        ):
            assert seen(shared) == seen(whole)
            found = seen(root)
            assert {path: found[path][7] for path, node in walk(alone.root) if node.content} == {
                path: alone.data(node) for path, node in walk(alone.root) if node.content
            }
