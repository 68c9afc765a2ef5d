"""Random layered images become the same trees as umoci makes of them, and what one refuses the other does."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from ramet.errors import DamagedError
from ramet.images.layers.tree import walk
from tests.unit.images.layer_tars import Member, member, merged, tar
from tests.unit.images.random_layers import random_image
from tests.unit.images.sources.archives import TAG, Contents, image_in, layout, write

_BATCH = 50


class Facts(NamedTuple):
    kind: int
    permissions: int
    content: bytes


Tree = dict[bytes, Facts]


class Outcome(NamedTuple):
    equal: int
    refused: int
    differ: list[str]


def umoci() -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can unpack with owners, as umoci does then")
    return shutil.which("umoci") or pytest.skip("no umoci here (Debian's package)")


def ours(layers: list[bytes]) -> Tree | str:
    """The tree that ramet makes, or its error."""
    try:
        with merged(layers) as tree:
            return {
                path: Facts(
                    node.file_type,
                    0 if node.file_type == stat.S_IFLNK else node.permissions,
                    node.link if node.file_type == stat.S_IFLNK else tree.data(node),
                )
                for path, node in walk(tree.root)
                if path
            }
    except DamagedError as error:
        return str(error)


def theirs(program: str, source: Path, tag: str, bundle: Path) -> Tree | str:
    """The tree that umoci unpacks, or its error."""
    unpacked = subprocess.run(
        [program, "unpack", "--image", f"{source}:{tag}", str(bundle)], capture_output=True, timeout=60
    )
    if unpacked.returncode:
        return unpacked.stderr.decode(errors="replace")[-200:]
    found: Tree = {}
    root = os.fsencode(bundle / "rootfs")
    for directory, below, files in os.walk(root):
        for name in below + files:
            path = directory + b"/" + name
            mode = os.lstat(path).st_mode
            kind = stat.S_IFMT(mode)
            content = b""
            if kind == stat.S_IFLNK:
                content = os.readlink(path)  # noqa: PTH115 - bytes
            elif kind == stat.S_IFREG:
                content = Path(os.fsdecode(path)).read_bytes()
            permissions = 0 if kind == stat.S_IFLNK else stat.S_IMODE(mode)
            found[path[len(root) + 1 :]] = Facts(kind, permissions, content)
    return found


def compare(images: dict[str, list[list[Member]]], directory: Path, program: str) -> Outcome:
    """Make each image in both ways."""
    contents: Contents = {}
    layers = {tag: [tar(layer) for layer in image] for tag, image in images.items()}
    manifests = [image_in(contents, made, suffix="", annotations={TAG: tag}) for tag, made in layers.items()]
    source = write(layout(*manifests, contents=contents), directory / "layout")
    equal = refused = 0
    differ: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        unpacked = {
            tag: pool.submit(theirs, program, source, tag, directory / f"bundle-{tag}") for tag in images
        }
        for tag, made in layers.items():
            first, second = ours(made), unpacked[tag].result()
            if isinstance(first, str) and isinstance(second, str):
                refused += 1
            elif isinstance(first, str) or isinstance(second, str):
                differ.append(f"{tag}: one refuses: {first if isinstance(first, str) else second}")
            elif first != second:
                paths = sorted(path for path in {*first, *second} if first.get(path) != second.get(path))
                differ.append(f"{tag}: {[(path, first.get(path), second.get(path)) for path in paths[:3]]}")
            else:
                equal += 1
    shutil.rmtree(directory)
    return Outcome(equal, refused, differ)


def check(seeds: range, directory: Path) -> None:
    program = umoci()
    equal = refused = 0
    differ: list[str] = []
    for first in range(seeds.start, seeds.stop, _BATCH):
        images = {f"s{seed}": random_image(seed) for seed in range(first, min(first + _BATCH, seeds.stop))}
        outcome = compare(images, directory / f"b{first}", program)
        equal, refused = equal + outcome.equal, refused + outcome.refused
        differ += outcome.differ
    print(f"\n{len(seeds)} images: {equal} equal, {refused} refused by both, {len(differ)} differ")
    assert not differ
    assert equal >= len(seeds) // 4


@pytest.mark.slow
def test_images_are_as_umoci_unpacks_them(tmp_path: Path) -> None:
    check(range(100), tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_thousand_images_are_as_umoci_unpacks_them(tmp_path: Path) -> None:
    check(range(1000, 2000), tmp_path)


def test_a_difference_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: here ramet is made blind to whiteouts."""
    program = umoci()
    image = [[member("a", data=b"1")], [member(".wh.a")]]
    assert compare({"right": image}, tmp_path / "1", program) == Outcome(1, 0, [])
    monkeypatch.setattr("ramet.images.layers.merge.Merge._hide", lambda self, parts: None)
    outcome = compare({"wrong": image}, tmp_path / "2", program)
    assert len(outcome.differ) == 1
    assert "b'a'" in outcome.differ[0]
