"""Archives with compressed memory from people whom nobody believes: refused, and nothing of them is left."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

import ramet
from ramet.engine.manifest import Compressed, Manifest, Part, Source
from ramet.errors import DamagedError
from ramet.memory.compressed import FRAME_BYTES, table
from ramet.memory.integrity import PartFacts, digest, facts_of
from ramet.model.lifecycle import State
from ramet.units import PAGE_SIZE_BYTES
from tests.support.archive_bytes import ended, header, part
from tests.unit.engine.test_transfer import MACHINE, manifest_of
from tests.unit.memory.test_compressed import compress, raw_file

pytestmark = pytest.mark.anyio

SIZE_BYTES = 2 * FRAME_BYTES
NAME = "mem-1234abcd.zst"
VMSTATE = b"devices"


class Capture:
    """A good one, and what an archive of it says."""

    def __init__(self, directory: Path) -> None:
        raw = raw_file(directory / "raw", {100: os.urandom(5000), FRAME_BYTES + 7: b"more"}, SIZE_BYTES)
        compress(raw, directory / NAME)
        (directory / "vmstate").write_bytes(VMSTATE)
        self.packed = (directory / NAME).read_bytes()
        self.raw_digest = digest(raw)
        self.compressed = Compressed(file=NAME, facts=facts_of(directory / NAME), level=3)
        facts = PartFacts(size_bytes=SIZE_BYTES, allocated_bytes=8192, mode=0o444, mtime_ns=1)
        self.mem = Part(facts=facts, digest=self.raw_digest)
        self.vmstate = Part(facts=facts_of(directory / "vmstate"), digest=digest(directory / "vmstate"))

    def manifest(self, **changed: object) -> Manifest:
        """Its manifest, with another compressed file, or another part `mem`."""
        mem = changed.get("mem", self.mem)
        assert isinstance(mem, Part)
        manifest = msgspec.structs.replace(
            manifest_of({"mem": mem, "vmstate": self.vmstate}),
            machine=msgspec.structs.replace(MACHINE, memory_bytes=SIZE_BYTES),
            source=Source(id="0123456789ab", name="far", state=State.RUNNING, parent=None),
        )
        compressed = changed.get("compressed", self.compressed)
        assert isinstance(compressed, Compressed)
        return manifest.with_compressed(compressed)

    def archive(self, manifest: Manifest, packed: bytes | None = None) -> bytes:
        """All of it as one file."""
        data = self.packed if packed is None else packed
        file = manifest.memory.compressed
        assert file is not None
        return ended(
            header(manifest.encoded(), data_bytes=len(data) + len(VMSTATE))
            + part(file.file, file.facts.size_bytes, (0, data))
            + part("vmstate", len(VMSTATE), (0, VMSTATE))
        )


@pytest.fixture
def capture(tmp_path: Path) -> Capture:
    """In a directory of its own."""
    (tmp_path / "capture").mkdir()
    return Capture(tmp_path / "capture")


@pytest.mark.parametrize("allocated", [-1, 0, 1 << 60])
async def test_a_good_one_comes(host: ramet.Host, tmp_path: Path, capture: Capture, allocated: int) -> None:
    """Of its mem-file no fact is believed that it could harm with."""
    told = msgspec.structs.replace(
        capture.mem.facts, allocated_bytes=allocated, mtime_ns=1 << 80, mode=0o7777
    )
    manifest = capture.manifest(mem=msgspec.structs.replace(capture.mem, facts=told))
    file = tmp_path / "file"
    file.write_bytes(capture.archive(manifest))
    came = await host.import_snapshot(file, name="s")
    assert (await came.inspect()).compression == "compressed"
    assert (await came.verify()).ok
    done = await came.decompress()
    assert (done.compression, done.raw_bytes) == ("raw", 3 * PAGE_SIZE_BYTES)
    mem = came.directory / "mem"
    assert digest(mem) == capture.raw_digest
    assert mem.stat().st_mode & 0o7777 in (0o444, 0o600)
    assert (await came.compress(level=5)).level == 5
    await came.remove()


def changed(capture: Capture, how: str) -> bytes:
    """An archive of it that lies."""
    facts, replace = capture.compressed.facts, msgspec.structs.replace
    zero_frame = capture.packed[:50]
    match how:
        case "a name":
            return capture.archive(
                capture.manifest(compressed=replace(capture.compressed, file="console.log"))
            )
        case "a path":
            return capture.archive(
                capture.manifest(compressed=replace(capture.compressed, file="../mem.zst"))
            )
        case "another part's name":
            return capture.archive(capture.manifest(compressed=replace(capture.compressed, file="vmstate")))
        case "a level":
            return capture.archive(capture.manifest(compressed=replace(capture.compressed, level=99)))
        case "a negative size":
            lies = replace(capture.compressed, facts=replace(facts, size_bytes=-1))
            return ended(header(capture.manifest(compressed=lies).encoded()))
        case "a larger guest":
            larger = replace(capture.mem, facts=replace(capture.mem.facts, size_bytes=SIZE_BYTES * 2))
            return capture.archive(capture.manifest(mem=larger))
        case "an endless guest":
            endless = replace(capture.mem, facts=replace(capture.mem.facts, size_bytes=1 << 64))
            return capture.archive(capture.manifest(mem=endless))
        case "no mem-file":
            there = capture.manifest()
            return capture.archive(replace(there, parts={"vmstate": capture.vmstate}))
        case "other content":
            return capture.archive(
                capture.manifest(mem=replace(capture.mem, digest="sparse-sha256:" + "0" * 64))
            )
        case "a cut frame":
            packed = zero_frame + table([25, 25], SIZE_BYTES)
            lies = replace(capture.compressed, facts=replace(facts, size_bytes=len(packed)))
            return capture.archive(capture.manifest(compressed=lies), packed)
        case _:
            # Millions of frames, all in the same few bytes.
            packed = capture.packed[:100] + b"\0" * (len(capture.packed) - 100)
            return capture.archive(capture.manifest(), packed)


REFUSALS = {
    "a name": "no part of a capture is called",
    "a path": "no part of a capture is called",
    "another part's name": "comes twice|where part|which no part",
    "a level": "compressed memory",
    "a negative size": "-1 bytes",
    "a larger guest": "too short for its frames|its end isn't the table",
    "an endless guest": "gives mem 18446744073709551616 bytes",
    "no mem-file": "lists no part 'mem'",
    "other content": "isn't what its manifest says: digest",
    "a cut frame": "is damaged: its table gives|is damaged: the frame",
    "zeros": "its end isn't the table",
}


@pytest.mark.parametrize("how", REFUSALS)
async def test_one_that_lies(host: ramet.Host, tmp_path: Path, capture: Capture, how: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(changed(capture, how))
    with pytest.raises(DamagedError, match=REFUSALS[how]) as caught:
        await host.import_snapshot(file)
    assert caught.value.hint
    assert await host.snapshots() == []
    assert list((host.home / "snapshots").iterdir()) == []
