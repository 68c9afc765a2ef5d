"""Alpine's root, from a mounted disk, becomes an image that has every file of it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ramet import config
from ramet.images.library.library import Library
from ramet.images.sources.directory import Skipped
from ramet.images.sources.load import import_image
from tests.unit.images.library.libraries import seen

DISK = config.tools_directory() / "alpine-3.23-amd64.qcow2"
"""Found before a test moves the home."""


@contextmanager
def alpine(directory: Path) -> Iterator[Path]:
    """Alpine's root, mounted read-only."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a disk")
    if not DISK.is_file():
        pytest.skip("Alpine's disk isn't here (tools/get_alpine.py fetches it)")
    if shutil.which("qemu-img") is None:
        pytest.skip("no qemu-img here (Debian: qemu-utils)")
    raw, place = directory / "alpine.raw", directory / "alpine"
    place.mkdir()
    subprocess.run(["qemu-img", "convert", "-O", "raw", DISK, raw], check=True, timeout=120)
    options = "loop,ro,noload"  # no journal is replayed
    done = subprocess.run(
        ["mount", "-t", "ext4", "-o", options, raw, place], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        pytest.skip(f"no loop devices here: {done.stderr}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=60)
        raw.unlink()


@pytest.mark.slow
@pytest.mark.anyio
async def test_alpine_becomes_an_image(library: Library, tmp_path: Path) -> None:
    with alpine(tmp_path) as root:
        done = await import_image(library, root)
        image = done.image
        files: dict[bytes, Any] = dict(seen(image))
        assert image.name == "alpine:latest"
        assert done.skipped == Skipped()
        paths = {b"": root}
        for path in root.rglob("*"):
            paths[os.fsencode(path)[len(os.fsencode(root)) + 1 :]] = path
        assert set(files) == set(paths)
        assert len(files) > 1000
        for name, path in paths.items():
            file, facts = files[name], path.lstat()
            assert (file.mode, file.uid, file.gid) == (facts.st_mode, facts.st_uid, facts.st_gid), name
            assert file.mtime[0] * 10**9 + file.mtime[1] == facts.st_mtime_ns, name
            if stat.S_ISREG(facts.st_mode):
                assert file.data == path.read_bytes(), name
            elif stat.S_ISLNK(facts.st_mode):
                assert file.data == os.fsencode(path.readlink()), name
            if not stat.S_ISDIR(facts.st_mode):
                assert file.links == facts.st_nlink, name
        assert files[b"bin/busybox"].mode & 0o111
