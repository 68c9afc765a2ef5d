"""Captures of guests of container images: the image's files are shared parts of each, wherever it goes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import ramet
from ramet.errors import DamagedError
from ramet.images.library.records import ContainerImage
from ramet.memory.integrity import digest
from ramet.model.lifecycle import State
from ramet.paths import MANIFEST_FILE
from tests.support.containers import LARGE, run

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

_SUM = f"{hashlib.md5(LARGE).hexdigest()}  /large\n"


def inodes(directory: Path) -> list[int]:
    """The inodes of the image's files in a directory."""
    return [path.stat().st_ino for path in sorted(directory.glob("base*.erofs"))]


def of_library(image: ContainerImage) -> list[int]:
    """The inodes of the image's files in its library."""
    return [image.path_of(base).stat().st_ino for base in image.bases]


@pytest.mark.core
@pytest.mark.proves("I3")
async def test_forks_read_the_image_of_a_source_that_is_gone(
    host: ramet.Host, image: ContainerImage, idle: ramet.VM
) -> None:
    """What no guest had read before is read from the shared file; what one writes no other sees."""
    assert inodes(idle.directory) == of_library(image)
    await idle.exec("sh", "-c", "echo source > /root-file; rm /bin/env", user="root", check=True, cwd="/")
    one, two = await idle.fork(2)
    await idle.remove(force=True)
    for fork in (one, two):
        assert inodes(fork.directory) == of_library(image)
        assert [base.mode for base in fork.receipt.bases] == ["shared", "shared"]
        assert (await fork.exec("md5sum", "/large", cwd="/", check=True)).text == _SUM
        assert (await fork.exec("cat", "/root-file", cwd="/", check=True)).text == "source\n"
        assert not (await fork.exec("test", "-e", "/bin/env", cwd="/")).ok
    await one.exec("sh", "-c", "echo 1 > /root-file; echo 1 > /large", user="root", cwd="/", check=True)
    assert (await two.exec("md5sum", "/large", cwd="/", check=True)).text == _SUM
    assert (await two.exec("cat", "/root-file", cwd="/", check=True)).text == "source\n"


async def test_standby_snapshot_export_import_and_rewind(
    host: ramet.Host, image: ContainerImage, idle: ramet.VM, tmp_path: Path
) -> None:
    """All have the library's inodes; an import takes the library's files instead of its own."""
    await idle.exec("sh", "-c", "echo first > /note", user="root", cwd="/", check=True)
    made = await idle.snapshot("first")
    verification = await made.verify()
    assert {part.name for part in verification.parts} >= {"base0.erofs", "base1.erofs"}
    assert verification.ok
    await idle.exec("sh", "-c", "echo second > /note", user="root", cwd="/", check=True)
    await idle.standby()
    assert inodes(idle.directory) == of_library(image)
    await idle.restore()
    assert (await idle.exec("cat", "/note", cwd="/", check=True)).text == "second\n"
    await idle.rewind("first")
    assert (await idle.exec("cat", "/note", cwd="/", check=True)).text == "first\n"

    file = tmp_path / "first.ramet"
    await made.export(file)
    await made.remove()
    imported = await host.import_snapshot(file)
    assert inodes(host.home / "snapshots" / imported.id) == of_library(image)
    (fork,) = await imported.fork(1)
    assert inodes(fork.directory) == of_library(image)
    assert fork._record.main == idle._record.main
    assert (await fork.info()).image_digest == image.digest
    assert (await fork.exec("cat", "/note", cwd="/", check=True)).text == "first\n"


@pytest.mark.deep
async def test_an_import_elsewhere_has_its_own_files(
    host: ramet.Host, image: ContainerImage, idle: ramet.VM, home: Path, tmp_path: Path
) -> None:
    """A home that hasn't got the image runs its guests all the same. An altered mark is refused."""
    file = tmp_path / "it.ramet"
    made = await idle.snapshot()
    await made.export(file)
    async with ramet.Host(home) as other:
        imported = await other.import_snapshot(file)
        (fork,) = await imported.fork(1)
        assert (await fork.exec("md5sum", "/large", cwd="/", check=True)).text == _SUM
        directory = other.home / "snapshots" / imported.id
        base = directory / "base1.erofs"
        base.chmod(0o600)
        with base.open("r+b") as content:
            content.seek(-4096, 2)
            content.write(b"x" * 16)
        base.chmod(0o444)
        verification = await imported.verify()
        assert [part.name for part in verification.parts if not part.ok] == ["base1.erofs"]
        with pytest.raises(DamagedError, match=r"base1\.erofs"):
            await imported.fork(1)
        await imported.remove()


@pytest.mark.deep
async def test_a_stopped_instance_starts_with_its_image_and_its_root(
    host: ramet.Host, image: ContainerImage, idle: ramet.VM
) -> None:
    """Also a fork's, whose disk lies over its source's, and when the image isn't in the library any more."""
    await idle.exec("sh", "-c", "echo kept > /note; echo data > /data/note", user="root", cwd="/", check=True)
    assert (await idle.stop()).state is State.STOPPED
    await idle.start()
    said = await idle.exec("cat", "/note", "/data/note", "/proc/sys/kernel/hostname", cwd="/", check=True)
    assert said.text.split() == ["kept", "data", idle.name]
    assert (await idle.exec("md5sum", "/large", cwd="/", check=True)).text == _SUM
    assert (await idle.info()).exit_code is None


@pytest.mark.deep
async def test_a_branch_names_digests_that_nobody_computed_again(
    host: ramet.Host, image: ContainerImage, idle: ramet.VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests of the image's files are known from its record: a capture doesn't read them."""
    read: list[str] = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr("ramet.engine.capture.publish.digest", noted)
    booted = await run(host, image, is_idle=True, rootfs="ram:8M")
    made = await booted.snapshot()
    assert "vmstate" in read
    assert not [name for name in read if name.startswith("base")]
    manifest = json.loads((host.home / "snapshots" / made.id / MANIFEST_FILE).read_text())
    for base in image.bases:
        assert manifest["parts"][base.file]["digest"] == base.part_digest is not None
