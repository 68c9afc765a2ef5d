"""Captures as one file: what arrives is what was there, or nothing is left of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.engine.capture import archive as capture_archive
from ramet.engine.capture.archive import Imported, export_capture, import_capture, with_new_facts
from ramet.engine.manifest import FORMAT, Manifest, Part, check_part
from ramet.errors import DamagedError, FilesystemError, RametError, UnavailableError
from ramet.memory.integrity import PartFacts, check, digest, facts_of
from ramet.model.record import Machine
from ramet.system.archive import ArchiveFacts
from ramet.system.files import allocated_bytes
from ramet.units import GIB, KIB, MIB, PAGE_SIZE_BYTES
from tests.support.archive_bytes import ended, header, part, stream_of

MACHINE = Machine(
    accelerator="tcg",
    machine_type="pc-i440fx-7.2",
    cpu_model="qemu64",
    memory_bytes=2 * GIB,
    cpus=1,
    kernel_arguments="quiet",
    agent_ports=4,
)
NO_FACTS = PartFacts(size_bytes=0, allocated_bytes=0, mode=0o444, mtime_ns=0)


def manifest_of(parts: dict[str, Part]) -> Manifest:
    return Manifest(
        format=FORMAT,
        driver="qemu",
        driver_version="7.2.19",
        machine=MACHINE,
        image="builtin",
        kernel_version="6.1.0",
        generation=1,
        created_at="2026-01-02T03:04:05Z",
        parts=parts,
    )


def capture(directory: Path, **files: tuple[int, list[tuple[int, bytes]]]) -> Manifest:
    """A published capture, of sparse files of those sizes with that data in them."""
    directory.mkdir()
    parts = {}
    for name, (size, written) in files.items():
        path = directory / name
        with path.open("xb") as file:
            file.truncate(size)
            for offset, data in written:
                os.pwrite(file.fileno(), data, offset)
            os.fsync(file.fileno())
        path.chmod(0o444)
        parts[name] = Part(facts=facts_of(path), digest=digest(path))
    return manifest_of(parts)


def archive_of(directory: Path, manifest: Manifest) -> bytes:
    with tempfile.TemporaryFile() as file:
        export_capture(directory, manifest.encoded(), file.fileno())
        file.seek(0)
        return file.read()


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """An empty directory for what is imported."""
    place = tmp_path / "room"
    place.mkdir()
    return place


def brought(archive: bytes, place: Path, **options: Any) -> Imported:
    with stream_of(archive) as stream:
        return import_capture(stream, place / "new", **options)


def refused(
    archive: bytes, place: Path, error: type[Exception] | tuple[type[Exception], ...], match: str | None
) -> None:
    """The import fails, the error names it, and nothing is left."""
    with pytest.raises(error, match=match) as raised:
        brought(archive, place, name="SOME FILE")
    assert isinstance(raised.value, RametError)
    assert "SOME FILE" in raised.value.message or str(place) in raised.value.message
    assert list(place.iterdir()) == []


pages = st.integers(0, 63).map(lambda page: page * PAGE_SIZE_BYTES) | st.integers(0, 256 * KIB - 1)
written = st.lists(
    st.tuples(pages, st.binary(min_size=1, max_size=6000) | st.integers(1, 80_000).map(bytes)), max_size=6
)
contents = st.tuples(st.integers(0, 300 * KIB), written).map(
    lambda content: (
        content[0],
        [(offset, data[: content[0] - offset]) for offset, data in content[1] if offset < content[0]],
    )
)
names = st.sampled_from(["mem", "mem-0a1b", "delta", "vmstate", "kernel", "disk-0.qcow2", "disk1.raw"])


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(names, contents, max_size=5))
def test_there_and_back(files: dict[str, tuple[int, list[tuple[int, bytes]]]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        old, new = Path(place, "old"), Path(place, "new")
        manifest = capture(old, **files)
        archive = archive_of(old, manifest)
        imported = brought(archive, Path(place), mode=lambda name: 0o600 if name == "mem" else 0o444)
        assert imported.exported == manifest.encoded()
        assert sorted(path.name for path in new.iterdir()) == sorted(files)
        for name in files:
            assert (new / name).read_bytes() == (old / name).read_bytes()
            assert (new / name).stat().st_mode & 0o777 == (0o600 if name == "mem" else 0o444)
            assert allocated_bytes(new / name) <= allocated_bytes(old / name) + PAGE_SIZE_BYTES
            # The new facts are the new files', and what a fork checks.
            check_part(imported.manifest, new, name)
        digests = {name: what.digest for name, what in imported.manifest.parts.items()}
        assert digests == {name: what.digest for name, what in manifest.parts.items()}
        assert msgspec.structs.replace(imported.manifest, parts={}) == msgspec.structs.replace(
            manifest, parts={}
        )


def test_a_copy_gets_facts_of_its_own(tmp_path: Path) -> None:
    manifest = capture(tmp_path / "old", mem=(MIB, [(0, b"hot")]))
    shutil.copytree(tmp_path / "old", tmp_path / "new", copy_function=shutil.copyfile)
    with pytest.raises(DamagedError, match="mtime_ns"):
        check(tmp_path / "new" / "mem", manifest.parts["mem"].facts)
    check_part(with_new_facts(manifest, tmp_path / "new"), tmp_path / "new", "mem")


def test_guest_ram_that_was_never_touched_costs_nothing(tmp_path: Path, room: Path) -> None:
    """Neither bytes in the archive nor reading: of 2 GiB with 3 pages of data, hardly more than those."""
    data = os.urandom(PAGE_SIZE_BYTES)
    pieces = [(0, data), (GIB + PAGE_SIZE_BYTES, data), (2 * GIB - PAGE_SIZE_BYTES, data)]
    manifest = capture(tmp_path / "old", mem=(2 * GIB, pieces))
    before = characters_read()
    archive = archive_of(tmp_path / "old", manifest)
    imported = brought(archive, room)
    assert len(archive) < 5 * PAGE_SIZE_BYTES
    assert characters_read() - before < MIB
    assert imported.manifest.parts["mem"].facts.size_bytes == 2 * GIB
    assert allocated_bytes(room / "new" / "mem") <= 4 * PAGE_SIZE_BYTES


def characters_read() -> int:
    """What this process has read, by any call (proc(5), /proc/pid/io)."""
    return int(Path("/proc/self/io").read_text().split()[1])


def small(tmp_path: Path) -> tuple[Manifest, bytes]:
    """A capture and its archive."""
    manifest = capture(
        tmp_path / "old",
        mem=(5 * PAGE_SIZE_BYTES, [(PAGE_SIZE_BYTES, b"gene")]),
        vmstate=(9, [(0, b"state")]),
    )
    return manifest, archive_of(tmp_path / "old", manifest)


def test_cut_short_anywhere_nothing_is_left(tmp_path: Path, room: Path) -> None:
    _, archive = small(tmp_path)
    # Where heads, names and small fields lie, every point; in the middle of long stretches some.
    for length in {*range(0, len(archive), 37), *range(100), *range(len(archive) - 300, len(archive))}:
        refused(archive[:length], room, DamagedError, "cut short")


def test_altered_anywhere_nothing_is_left(tmp_path: Path, room: Path) -> None:
    manifest, archive = small(tmp_path)
    behind = 24 + len(manifest.encoded())
    for position in {*range(0, len(archive), 41), *range(24), *range(behind, behind + 60)}:
        altered = bytearray(archive)
        altered[position] ^= 1 << position % 8
        refused(bytes(altered), room, (DamagedError, UnavailableError, FilesystemError), None)


def by_hand(parts: dict[str, Part], *pieces: bytes, **fields: Any) -> bytes:
    """An archive whose manifest names these parts, with those pieces in it."""
    encoded = msgspec.json.encode({**msgspec.to_builtins(manifest_of(parts)), **fields})
    return ended(header(encoded, data_bytes=fields.get("data_bytes", 0)) + b"".join(pieces))


def named(name: str, size: int = 0, digest: str = "") -> dict[str, Part]:
    return {name: Part(facts=msgspec.structs.replace(NO_FACTS, size_bytes=size), digest=digest)}


@pytest.mark.parametrize(
    ("archive", "match"),
    [
        *[
            (
                by_hand(named(name), part(name.lstrip("./") or "mem", 0)),
                "which no part of a capture is called",
            )
            for name in (
                *("../mem", "/etc/cron.d/evil", "disk/../../x", "..", "", ".tmp-mem", "mem\0", "mem\n"),
                *("manifest.json", "config.json", "console.log", "api.sock", "MEM", "mem-"),
                *("lifecycle.lock", "disk-0.qcow2.lock", "disk.vmdk"),
            )
        ],
        (by_hand({**named("mem"), **named("vmstate")}, part("mem", 0)), "its end comes where part 'vmstate'"),
        (by_hand(named("mem"), part("vmstate", 0)), "part 'vmstate' of 0 bytes comes where part 'mem'"),
        (by_hand(named("mem"), part("manifest.json", 0)), "part 'manifest.json' of 0 bytes comes where"),
        (by_hand(named("mem"), part("mem", 1)), "part 'mem' of 1 bytes comes where part 'mem' of 0 bytes"),
        (by_hand({}, part("mem", 0)), "which its manifest doesn't name"),
        (by_hand({f"disk{n}.raw": named("mem")["mem"] for n in range(65)}), "65 parts, more than 64"),
        (by_hand(named("mem", -1)), "gives mem -1 bytes"),
        (by_hand(named("mem", 2**63), part("mem", 2**63)), "can't be read|9223372036854775808 bytes"),
        (
            by_hand(named("mem", 9, "sparse-sha256:" + "0" * 64), part("mem", 9)),
            "what its manifest says: digest",
        ),
        (by_hand(named("mem", 9), data_bytes=10), "10 bytes of data for parts of 9"),
        (by_hand({}, format=FORMAT + 1, machine=None), f"format {FORMAT + 1}; this ramet knows {FORMAT}"),
        (by_hand({}, machine="pc"), "can't be read"),
        (ended(header(b"")), "can't be read"),
        (ended(header(b"not JSON")), "can't be read"),
        (ended(header(b"\xff\xfe")), "can't be read"),
        (ended(header(b"[" * MIB)), "can't be read"),
        (ended(header(b'{"format": 1, "x": ' + b"[" * MIB)), "can't be read"),
        (b"", "cut short, after 0 bytes"),
    ],
)
def test_hostile(room: Path, archive: bytes, match: str) -> None:
    refused(archive, room, DamagedError, match)


def test_larger_than_a_file_can_be(room: Path) -> None:
    size = 2**63 - 1
    refused(by_hand(named("mem", size), part("mem", size)), room, FilesystemError, "too large")


def test_no_room_is_known_before_anything_is_written(tmp_path: Path, full: Path) -> None:
    manifest = capture(tmp_path / "old", mem=(GIB, [(0, os.urandom(2 * MIB))]))
    made: list[bool] = []

    def checkpoint() -> None:
        made.append((full / "new").exists())

    archive = archive_of(tmp_path / "old", manifest)
    with pytest.raises(FilesystemError, match=r"up to 2.0 MiB are needed, 1.0 MiB are free"):
        brought(archive, full, checkpoint=checkpoint)
    assert made
    assert not any(made)


def test_sparse_files_need_no_more_room_than_their_data(tmp_path: Path, full: Path) -> None:
    manifest = capture(tmp_path / "old", mem=(GIB, [(GIB // 2, os.urandom(MIB // 2))]))
    brought(archive_of(tmp_path / "old", manifest), full)
    assert digest(full / "new" / "mem") == manifest.parts["mem"].digest


def test_a_disk_that_becomes_full_is_as_it_was(full: Path) -> None:
    """1,000 bytes of data, as announced, each in a block of its own: 4 MiB."""
    before = os.statvfs(full).f_bfree
    pieces = [(number * PAGE_SIZE_BYTES, b"x") for number in range(1000)]
    size = 1000 * PAGE_SIZE_BYTES
    archive = by_hand(named("mem", size), part("mem", size, *pieces), data_bytes=1000)
    refused(archive, full, FilesystemError, "can't write .*mem: No space left on device")
    assert os.statvfs(full).f_bfree == before


def test_what_is_there_is_left_alone(tmp_path: Path, room: Path) -> None:
    _, archive = small(tmp_path)
    (room / "new").mkdir()
    (room / "new" / "mem").write_bytes(b"somebody's")
    with pytest.raises(FilesystemError, match="File exists"):
        brought(archive, room)
    assert (room / "new" / "mem").read_bytes() == b"somebody's"


class GivenUp(BaseException):
    """As a cancellation is."""


def test_given_up_at_any_point_nothing_is_left(tmp_path: Path, room: Path) -> None:
    _, archive = small(tmp_path)
    calls = 0
    while True:
        left = calls

        def checkpoint() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise GivenUp

        try:
            brought(archive, room, checkpoint=checkpoint)
            break
        except GivenUp:
            assert list(room.iterdir()) == []
        calls += 1
    assert calls > 2


def exported(directory: Path, manifest: Manifest, checkpoint: Callable[[], None]) -> bytes:
    with tempfile.TemporaryFile() as file:
        facts = export_capture(directory, manifest.encoded(), file.fileno(), checkpoint=checkpoint)
        file.seek(0)
        archive = file.read()
        assert isinstance(facts, ArchiveFacts)
        assert facts.archive_bytes == len(archive)
        return archive


def test_a_capture_that_is_removed_meanwhile_is_exported_whole(tmp_path: Path, room: Path) -> None:
    data = os.urandom(3 * MIB)
    manifest = capture(tmp_path / "old", mem=(4 * MIB, [(0, data)]), vmstate=(9, [(0, b"state")]))
    archive = exported(
        tmp_path / "old", manifest, lambda: shutil.rmtree(tmp_path / "old", ignore_errors=True)
    )
    assert not (tmp_path / "old").exists()
    brought(archive, room)
    assert (room / "new" / "mem").read_bytes() == data.ljust(4 * MIB, b"\0")
    assert (room / "new" / "vmstate").read_bytes() == b"state".ljust(9, b"\0")


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[int]:
    """A descriptor to export to, into which nothing may be written."""
    with (tmp_path / "out").open("xb") as file:
        yield file.fileno()
    assert (tmp_path / "out").stat().st_size == 0


def remove(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    os.truncate(path, 3)


def alter(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"X")
    path.chmod(0o444)


def link_elsewhere(path: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")


def become_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (remove, "vmstate is missing"),
        (shorten, "size_bytes is 3, was 9"),
        (alter, "mtime_ns is"),
        (link_elsewhere, "isn't a regular file"),
        (become_fifo, "isn't a regular file"),
    ],
)
def test_a_part_that_isnt_the_manifests_is_said_before_anything_is_written(
    tmp_path: Path, untouched: int, change: Callable[[Path], None], match: str
) -> None:
    manifest, _ = small(tmp_path)
    change(tmp_path / "old" / "vmstate")
    with pytest.raises(DamagedError, match=match):
        export_capture(tmp_path / "old", manifest.encoded(), untouched)


def test_a_part_that_is_replaced_in_between_isnt_exported(
    tmp_path: Path, untouched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening it and looking at its facts: those are another file's then, equal as they may be."""
    manifest, _ = small(tmp_path)
    mem = tmp_path / "old" / "mem"
    shutil.copy2(mem, tmp_path / "copy")

    def replaced(manifest: Manifest, directory: Path, name: str) -> None:
        if name == "mem":
            (tmp_path / "copy").replace(mem)

    monkeypatch.setattr(capture_archive, "check_part", replaced)
    with pytest.raises(DamagedError, match="mem was replaced"):
        export_capture(tmp_path / "old", manifest.encoded(), untouched)


@pytest.mark.parametrize("name", ["../mem", "manifest.json", "console.log"])
def test_what_couldnt_be_imported_isnt_exported(tmp_path: Path, untouched: int, name: str) -> None:
    with pytest.raises(DamagedError, match="which no part of a capture is called"):
        export_capture(tmp_path, manifest_of(named(name)).encoded(), untouched)
