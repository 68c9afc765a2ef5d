"""`ls` and `inspect` say what images cost the disk, together with others and alone."""

from __future__ import annotations

import msgspec
import pytest

from ramet.errors import NotFoundError
from ramet.images.library.describe import details, entries
from ramet.images.library.library import Library
from tests.unit.images.library.libraries import bytes_in, layer_of, material_of

pytestmark = pytest.mark.anyio

BASE, OWN = layer_of("base", 400_000), [layer_of(f"own{number}", 100_000) for number in range(2)]


async def test_own_and_shared_bytes_are_told_apart(library: Library) -> None:
    assert entries(library) == []
    for number, own in enumerate(OWN):
        await library.add(material_of([BASE, own]), name=f"app:{number}", is_local=True)
    second, first = entries(library)
    assert (first.names, second.names) == (("app:0",), ("app:1",))
    assert (first.shared_bytes, second.shared_bytes) == (second.shared_bytes, first.shared_bytes)
    assert 400_000 < first.shared_bytes < 420_000
    assert 100_000 < first.own_bytes < 140_000
    assert first.shared_bytes + first.own_bytes + second.own_bytes == bytes_in(library._places.blobs)
    await library.remove("app:0")
    (left,) = entries(library)
    assert left.shared_bytes == 0
    assert left.own_bytes == second.own_bytes + second.shared_bytes


async def test_an_image_is_described_in_full(library: Library) -> None:
    image = await library.add(material_of([BASE, OWN[0]]), name="app", is_local=True)
    found = details(library, "app")
    assert found.image.names == ("app:latest",)
    assert found.image.digest == image.digest
    assert (found.image.is_local, found.image.damage) == (True, None)
    assert [device.name for device in found.devices] == ["base0", "base1", "base2"]
    assert [layer.device for layer in found.layers] == ["base1", "base2"]
    assert found.config.cmd == ("true",)
    assert found.inodes == len({"/", "base", "own0"}) + 2 * 7
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found
    image.path_of(image.bases[1]).unlink()
    broken = details(library, image.digest[7:20])
    assert "is missing" in str(broken.image.damage)
    assert broken.devices[1].disk_bytes == 0
    with pytest.raises(NotFoundError):
        details(library, "nothing")
