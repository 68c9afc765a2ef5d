"""Disks with a filesystem: whole, small, and the same whichever file holds them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.disk import filesystem
from ramet.disk.qcow2 import CLUSTER_BYTES, fill_qcow2
from ramet.disk.volumes import make_disk
from ramet.errors import FilesystemError, RametError, UnavailableError
from ramet.model.disks import SMALLEST_FILESYSTEM_BYTES
from ramet.model.record import Disk
from ramet.system import outside
from ramet.system.files import allocated_bytes
from ramet.units import GIB, KIB, MIB, TIB
from tests.side_by_side import tell
from tests.support.qemu_tools import content, needs_qemu_img, qemu_img, require_whole

E2FSCK = shutil.which("e2fsck", path=f"{os.defpath}:/usr/sbin:/sbin")


@pytest.fixture(autouse=True)
def _has_mke2fs() -> None:
    try:
        filesystem.find_mke2fs()
    except UnavailableError as error:
        pytest.skip(str(error))


def require_clean(raw: Path) -> None:
    """What e2fsck finds nothing to say about, its slow passes included."""
    assert E2FSCK is not None
    done = subprocess.run([E2FSCK, "-fn", raw], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def described(size_bytes: int, file_format: str) -> Disk:
    suffix = {"raw": "disk.raw", "qcow2": "disk-0.qcow2"}[file_format]
    return Disk(
        name="disk",
        file=suffix,
        format="raw" if file_format == "raw" else "qcow2",
        size_bytes=size_bytes,
        path="/data",
    )


@pytest.mark.timing
@pytest.mark.parametrize(
    "size_bytes",
    [
        *(SMALLEST_FILESYSTEM_BYTES, 64 * MIB + 512, 5 * GIB),
        pytest.param(TIB, marks=pytest.mark.slow),
    ],
)
def test_a_large_one_occupies_little_and_is_whole(tmp_path: Path, size_bytes: int) -> None:
    taken = {}
    for kind in ("raw", "qcow2"):
        disk = described(size_bytes, kind)
        began = time.monotonic()
        make_disk(tmp_path, disk)
        taken[kind] = (time.monotonic() - began, allocated_bytes(tmp_path / disk.file))
        assert taken[kind][1] <= 256 * KIB + size_bytes // 65536
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk-0.qcow2", "disk.raw"]
    assert (tmp_path / "disk.raw").stat().st_size == size_bytes
    require_clean(tmp_path / "disk.raw")
    words = ", ".join(f"{kind} {s * 1000:.0f} ms {b // KIB} KiB" for kind, (s, b) in taken.items())
    tell(f"a disk of {size_bytes // MIB} MiB with a filesystem: {words}")


@needs_qemu_img
@pytest.mark.parametrize("size_bytes", [SMALLEST_FILESYSTEM_BYTES, 3 * GIB])
def test_the_qcow2_has_what_the_raw_one_has(
    tmp_path: Path, size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = outside.run

    def at_one_time(*words: Any, environment: dict[str, str], **rest: Any) -> object:
        return run(*words, environment=environment | {"E2FSPROGS_FAKE_TIME": "1700000000"}, **rest)

    monkeypatch.setattr(outside, "run", at_one_time)
    for kind in ("raw", "qcow2"):
        make_disk(tmp_path, described(size_bytes, kind))
    monkeypatch.undo()
    with (tmp_path / "disk.raw").open("rb") as raw:
        raw.seek(1024 + 0x30)  # s_wtime of the superblock
        assert raw.read(4) == (1_700_000_000).to_bytes(4, "little")
    require_whole(tmp_path / "disk-0.qcow2")
    # Both are of one directory and name, so their identities are the same, and with the time everything is.
    qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp_path / "disk-0.qcow2", tmp_path / "out")
    # Unlike cmp(1), it doesn't read the holes.
    qemu_img("compare", "-f", "raw", "-F", "raw", tmp_path / "disk.raw", tmp_path / "out")
    require_clean(tmp_path / "out")


@pytest.mark.slow
@needs_qemu_img
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3 * GIB // 512), st.integers(1, 300)), max_size=8),
    st.sampled_from([MIB, MIB + 512, 512 * MIB, 3 * GIB + 512]),
)
def test_any_raw_file_can_be_had_as_qcow2(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int]], size_bytes: int
) -> None:
    place = tmp_path_factory.mktemp("fill")
    with (place / "raw").open("w+b") as raw:
        raw.truncate(size_bytes)
        for sector, sectors in writes:
            if (sector + sectors) * 512 <= size_bytes:
                os.pwrite(raw.fileno(), os.urandom(sectors * 512), sector * 512)
        fill_qcow2(place / "disk.qcow2", size_bytes, raw.fileno())
    require_whole(place / "disk.qcow2")
    assert qemu_img("info", "--output=json", place / "disk.qcow2")["virtual-size"] == size_bytes
    compared = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", place / "raw", place / "disk.qcow2"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert compared.returncode == 0, compared.stdout
    shutil.rmtree(place)


@needs_qemu_img
def test_zeros_take_no_clusters(tmp_path: Path) -> None:
    with (tmp_path / "raw").open("w+b") as raw:
        raw.write(bytes(4 * CLUSTER_BYTES) + b"x" + bytes(8 * MIB))
        raw.flush()
        fill_qcow2(tmp_path / "disk", 9 * MIB, raw.fileno())
    assert allocated_bytes(tmp_path / "disk") <= 64 * KIB
    assert content(tmp_path / "disk", tmp_path / "out")[4 * CLUSTER_BYTES :].startswith(b"x\0")


def test_without_mke2fs_the_next_step_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(filesystem, "_PROGRAM", "no-such-mke2fs")
    with pytest.raises(UnavailableError) as caught:
        make_disk(tmp_path, described(64 * MIB, "qcow2"))
    assert "e2fsprogs" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(tmp_path: Path, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("raw", "qcow2"):
        disk = described(8 * MIB, kind)
        (tmp_path / disk.file).write_bytes(b"there")
        with pytest.raises(FilesystemError):
            make_disk(tmp_path, disk)
        assert (tmp_path / disk.file).read_bytes() == b"there"
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(OSError, match="No space"), (full / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    for kind in ("raw", "qcow2"):
        with pytest.raises(RametError, match="No space left") as caught:
            make_disk(full, described(64 * MIB, kind))
        assert "free some" in str(caught.value.hint)
    assert [path.name for path in full.iterdir() if path.name != "lost+found"] == ["ballast"]
    hung = tmp_path / "hung"
    hung.write_text("#!/bin/sh\nexec sleep 100\n")
    hung.chmod(0o755)
    monkeypatch.setattr(filesystem, "find_mke2fs", lambda: str(hung))
    monkeypatch.setattr(filesystem, "_TIMEOUT_S", 0.2)
    (tmp_path / "disk.raw").unlink()
    with pytest.raises(FilesystemError, match="hangs"):
        make_disk(tmp_path, described(64 * MIB, "raw"))
    assert not (tmp_path / "disk.raw").exists()
