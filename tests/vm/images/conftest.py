"""A home with a small container image, and with a template of it, whose guest runs nothing yet."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import ramet
from ramet.errors import UnavailableError
from ramet.images.library.library import Library
from ramet.images.library.records import ContainerImage
from ramet.memory.integrity import digest
from ramet.model import protocols
from ramet.model.container import ImageConfig
from tests.conftest import assert_nothing_left
from tests.support.containers import add_image, run

CONFIG = ImageConfig(
    entrypoint=("/bin/sh", "-c"),
    cmd=("echo from the image; exit 3",),
    env=("COLOR=blue", "PLACE=image"),
    user="app",
    working_dir="/work/here",
)


@pytest.fixture(scope="session")
async def image_home(homes: Path, anyio_backend: str) -> AsyncIterator[Path]:
    """A home with the image `tiny`, and with the template `idle` of it."""
    directory = Path(tempfile.mkdtemp(dir=homes, prefix="images-"))
    try:
        async with ramet.Host(directory) as host:
            image = await add_image(directory, CONFIG)
            idle = await run(host, image, is_idle=True, name="idle", disks=["16M:/data"])
            await (await idle.template()).detach()
    except UnavailableError as error:
        pytest.skip(f"this machine can't run guests of container images: {error}")
    yield directory
    async with ramet.Host(directory) as host:
        for instance in await host.list(everything=True):
            await (await host.get(instance.id)).remove(force=True)
    assert_nothing_left(directory)


@pytest.fixture
async def host(image_home: Path) -> AsyncIterator[protocols.Host]:
    """An open Host on that home. Afterwards only the template is there."""
    async with ramet.Host(image_home) as opened:
        yield opened
        for snapshot in await opened.snapshots():
            await (await opened.snapshot(snapshot.id)).remove()
    async with ramet.Host(image_home) as opened:
        left = [instance.name for instance in await opened.list(everything=True)]
        for name in left:
            if name != "idle":
                await (await opened.get(name)).remove(force=True)
    assert left == ["idle"]


@pytest.fixture
def image(image_home: Path) -> ContainerImage:
    """The image."""
    return Library(image_home / "images", part_digest=digest).get("tiny")


@pytest.fixture
async def idle(host: ramet.Host) -> ramet.VM:
    """A fork of the template."""
    (fork,) = await (await host.get("idle")).fork(1)
    return fork
