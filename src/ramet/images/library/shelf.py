"""The records on disk: names, images and layers, read and written without any lock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from ramet.images.library.places import Places, digest_of_stem
from ramet.images.library.records import FORMAT, ImageRecord, NameRecord
from ramet.system.publishing import write_durably


class Shelf:
    """The records below one library's directories. What can't be read counts as absent."""

    def __init__(self, places: Places) -> None:
        self.places = places

    def record(self, digest: str) -> ImageRecord | None:
        """Return the record of an image; None if there is none, or one of another version."""
        try:
            record = msgspec.json.decode(self.places.manifest(digest).read_bytes(), type=ImageRecord)
        except (OSError, ValueError, msgspec.MsgspecError):
            return None  # the image is built again when it is next wanted
        return record if record.format == FORMAT and record.digest == digest else None

    def digests(self, digits: str) -> list[str]:
        """List the digests of images that begin with those digits."""
        return [digest_of_stem(path.stem) for path in files(self.places.manifests, f"{digits}*.json")]

    def images(self) -> list[tuple[list[NameRecord], ImageRecord]]:
        """List all images with their names, newest first."""
        names: dict[str, list[NameRecord]] = {}
        for entry in self.names():
            names.setdefault(entry.digest, []).append(entry)
        records = [record for digest in self.digests("") if (record := self.record(digest)) is not None]
        records.sort(key=lambda record: record.created_at, reverse=True)
        return [(names.get(record.digest, []), record) for record in records]

    def names(self) -> list[NameRecord]:
        """List all names, sorted."""
        found = []
        for path in files(self.places.names, "*.json"):
            if (entry := _read_name(path)) is not None:
                found.append(entry)
        return sorted(found, key=lambda entry: (entry.name, entry.platform))

    def name(self, name: str, platform: str = "") -> NameRecord | None:
        """Return the record of a name."""
        entry = _read_name(self.places.name(name, platform))
        return entry if entry is not None and (entry.name, entry.platform) == (name, platform) else None

    def give(self, entry: NameRecord) -> None:
        """Write a name's record. Raises `FilesystemError`."""
        content = msgspec.json.format(msgspec.json.encode(entry))
        write_durably(self.places.name(entry.name, entry.platform), content)


def files(directory: Path, pattern: str) -> Iterator[Path]:
    """Yield the finished files of a directory, sorted."""
    return (path for path in sorted(directory.glob(pattern)) if not path.name.startswith("."))


def _read_name(path: Path) -> NameRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=NameRecord)
    except (OSError, msgspec.MsgspecError):
        return None  # a name that can't be read is no name: the next pull gives it again
