"""Archives and layouts with random damage are images, or one error of ramet: never anything else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ramet.errors import RametError
from ramet.images.layers.merge import Merge
from ramet.images.layers.tar_entries import TarReader
from ramet.images.layers.unpack import LayerStream
from ramet.images.sources.directory import Skipped
from ramet.images.sources.recognize import Importer
from ramet.oci.documents import Platform
from tests.unit.images.sources.archives import LAYERS, archive, docker_save, one_image, write

PLATFORM = Platform("linux", "amd64")
_OTHERS = (b"7777", b"\xff", b"..", b"null", b"[")


def damaged(data: bytes, draw: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(out))
        match draw.randrange(5):
            case 0:
                out[at] ^= 1 << draw.randrange(8)
            case 1:
                out[at : at + 8] = draw.randbytes(8)
            case 2:
                del out[at : at + draw.choice((1, 512, 5000))]
            case 3:
                out[at:at] = out[: draw.choice((1, 512, 1024))]
            case _:
                for number in (b"0000", b"sha256", b"layer", b"json", b'"'):
                    if (place := out.find(number, at)) >= 0:
                        out[place : place + len(number)] = draw.choice(
                            (b"7777", b"\xff", b"..", b"null", b"[")
                        )
                        break
        if not out:
            break
    return bytes(out)


def refused(path: Path, scratch: Path) -> str | None:
    """Find the image and read all of it. Returns the message of the error, None if there is none."""
    importer = Importer(scratch, ref=None, platform=PLATFORM, skipped=Skipped())
    try:
        merge = Merge()
        for layer in importer.find(path, "it").material.layers:
            merge.begin_layer()
            for entry in TarReader(LayerStream(layer.open())):
                merge.add(entry)
    except RametError as error:
        return error.message
    finally:
        importer.close()
    return None


def check(seeds: range, directory: Path) -> int:
    """Damage and read as many archives, and then layouts. Returns how many were still images."""
    saved = docker_save({"app:1": LAYERS})
    originals = {
        "old": archive(saved, directory / "old").read_bytes(),
        "new": archive(docker_save({"app:1": LAYERS}, oci=True), directory / "new").read_bytes(),
        "oci": archive(one_image(suffix=""), directory / "oci").read_bytes(),
        "root": LAYERS[1],
    }
    assert refused(directory / "old", directory) is None
    source, messages = directory / "damaged", []
    for seed in seeds:
        draw = random.Random(seed)
        source.write_bytes(damaged(originals[draw.choice(list(originals))], draw))
        messages.append(refused(source, directory))
    files = one_image()
    place = write(files, directory / "layout")
    for seed in seeds:
        draw = random.Random(seed)
        name = draw.choice(list(files))
        (place / name).write_bytes(damaged(files[name], draw))
        messages.append(refused(place, directory))
        (place / name).write_bytes(files[name])
    assert all(message is None or (message.isprintable() and len(message) < 2000) for message in messages)
    return messages.count(None)


def test_random_damage(tmp_path: Path) -> None:
    taken = check(range(150), tmp_path)
    assert 5 < taken < 250  # some hits nothing that matters


@pytest.mark.deep
@pytest.mark.timeout(400)
def test_much_random_damage(tmp_path: Path) -> None:
    assert check(range(1000, 4000), tmp_path) > 50
