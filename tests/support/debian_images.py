"""A container image of Debian with Python, SQLite, PostgreSQL and systemd: made once, from this machine's own
archive.

As the emulated host's root: as root, in a minute or two, kept in the cache under a key of its recipe.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from ramet import config
from ramet.images.library.library import Library
from ramet.images.library.records import ContainerImage, Layer, Material
from ramet.images.publish import published_directory
from ramet.memory.integrity import digest
from ramet.model.container import ImageConfig
from ramet.units import MIB
from tests.endurance.emulated_host.root import _archive, _run
from tests.side_by_side import shared_directory

PACKAGES: Final = ("ca-certificates", "postgresql", "python3", "sqlite3", "systemd-sysv")
_UNNEEDED: Final = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
)
_LAYER: Final = "layer.tar"
_LIMIT_S: Final = 900


def debian_layer() -> Path:
    """The image's only layer, a tar. Skips the test where it can't be made."""
    release = platform.freedesktop_os_release()
    recipe = (*PACKAGES, *_UNNEEDED, release.get("VERSION_CODENAME", ""))
    place = config.cache_directory() / "debian-images"
    target = place / hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:20]
    with shared_directory("debian-image"):  # one worker makes it, and others wait
        _make(place, target)
    return target / _LAYER


def _make(place: Path, target: Path) -> None:
    if not target.is_dir():
        if os.geteuid() != 0 or not shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin"):
            pytest.skip("a Debian image is made by debootstrap, as root")
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="making-", dir=place) as workshop:
            tree = Path(workshop, "root")
            _bootstrap(tree)
            with published_directory(target) as making:
                pack = ("tar", "--numeric-owner", "--xattrs", "--acls", "--one-file-system")
                _run(*pack, "-C", tree, "-cf", making / _LAYER, ".", limit_s=_LIMIT_S)


def _bootstrap(tree: Path) -> None:
    archive = _archive()
    namespace = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    options = ("--variant=minbase", f"--include={','.join(PACKAGES)}")
    proxy = _run("apt-config", "shell", "proxy", "Acquire::http::Proxy").strip()
    environment = {"http_proxy": proxy.split("'")[1]} if proxy else {}
    words = (*namespace, "debootstrap", *options, archive.suite, tree, archive.uri)
    _run(*words, limit_s=_LIMIT_S, environment=environment)
    for unneeded in _UNNEEDED:
        shutil.rmtree(tree / unneeded, ignore_errors=True)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            yield chunk


async def debian_image(
    home: Path, config: ImageConfig, name: str = "debian", *, above: Sequence[bytes] = ()
) -> ContainerImage:
    """Put the image into a home's library, with further layers `above` it. Errors as `debian_layer`."""
    path = debian_layer()
    layers = [
        Layer("Debian", None, partial(_chunks, path), path.stat().st_size),
        *[
            Layer(f"layer {number}", None, partial(list, (layer,)), len(layer))
            for number, layer in enumerate(above, 1)
        ],
    ]
    library = Library(home / "images", part_digest=digest)
    return await library.add(Material(config, layers, None, "a test"), name=name, is_local=True)
