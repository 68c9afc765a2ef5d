"""A file that can't be imported says what to do about it, whatever is wrong in it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import ramet
from ramet.disk.qcow2 import make_qcow2
from ramet.engine.manifest import Manifest, Memory, Part, Source
from ramet.errors import DamagedError
from ramet.memory.integrity import digest, facts_of
from ramet.model.lifecycle import State
from ramet.model.record import Disk
from ramet.units import MIB
from tests.unit.engine.test_transfer import MACHINE, archive_of, manifest_of

pytestmark = pytest.mark.anyio

DISK = Disk(name="disk", file="disk-0.qcow2", format="qcow2", size_bytes=MIB)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Of a capture whose delta is none."""
    directory = tmp_path / "capture"
    directory.mkdir()
    with (directory / "mem").open("xb") as file:
        file.truncate(16 * MIB)
    (directory / "vmstate").write_bytes(b"devices")
    (directory / "delta").write_bytes(b"no delta")
    make_qcow2(directory / DISK.file, MIB, backing="secret")
    parts = {path.name: Part(facts=facts_of(path), digest=digest(path)) for path in directory.iterdir()}
    return msgspec.structs.replace(
        manifest_of(parts),
        machine=msgspec.structs.replace(MACHINE, memory_bytes=16 * MIB),
        source=Source(id="0123456789ab", name="far", state=State.RUNNING, parent=None),
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"memory": Memory(base="mem-1")}, "lists no part 'mem-1'"),
        ({"machine": MACHINE}, "is no snapshot that ramet made: mem-file"),
        (
            {"machine": msgspec.structs.replace(MACHINE, memory_bytes=16 * MIB, disks=(DISK,))},
            "secret is missing",
        ),
        ({"memory": Memory(delta="delta", delta_bytes=4096)}, "can't be used"),
    ],
    ids=["a part", "the machine", "a chain", "a delta"],
)
async def test_it_is_exported_again(
    host: ramet.Host, tmp_path: Path, manifest: Manifest, changed: dict[str, object], said: str
) -> None:
    file = tmp_path / "exported"
    file.write_bytes(archive_of(tmp_path / "capture", msgspec.structs.replace(manifest, **changed)))
    with pytest.raises(DamagedError, match=said) as caught:
        await host.import_snapshot(file)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("export it again")
    assert list((host.home / "snapshots").iterdir()) == []
