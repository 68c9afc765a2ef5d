"""An import: what a user names is recognized, read, built and named in the library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from ramet.errors import UsageError
from ramet.images.library.library import Library
from ramet.images.library.names import canonical_name
from ramet.images.library.obtain import parse_platform
from ramet.images.library.records import ContainerImage
from ramet.images.resolve import ALIASES, IMAGE_NAMES
from ramet.images.sources import programs
from ramet.images.sources.directory import Skipped
from ramet.images.sources.recognize import Importer
from ramet.oci.platforms import host_platform
from ramet.oci.reference import Reference
from ramet.system import threads

STDIN: Final = "-"
_SUFFIX: Final = re.compile(r"(?i)\.(?:tar|tgz|tbz2?|txz|tzst|gz|zst|xz|bz2|oci|rootfs|img)$")
_SEPARATORS: Final = re.compile(r"[._-]{2,}|[^a-z0-9._-]+")


class Imported(NamedTuple):
    """An image that was imported. `skipped` counts what a directory has and the image hasn't."""

    image: ContainerImage
    skipped: Skipped


async def import_image(
    library: Library,
    source: str | Path,
    *,
    name: str | None = None,
    ref: str | None = None,
    platform: str | None = None,
    stdin: int = 0,
) -> Imported:
    """Build the image that `source` is: a path, `-` for the descriptor `stdin`, `docker:NAME`, `podman:NAME`.

    `name` is its new name; by default its source's, or one made of the path's last part. `ref` chooses among
    several images of an archive or a layout, `platform` among an image's variants (this machine's).

    Raises `UsageError` for what isn't understood, for several images without `ref`, and where no name is
    known; `NotFoundError`; `DamagedError` for archives that are damaged or hostile; `UnavailableError` for
    programs that are missing; `FilesystemError` for what can't be read, changes while it is read, or doesn't
    fit on the disk. The library is as before then.
    """
    text = str(source)
    if name is not None:
        require_reference(name)
        require_free(name, text)
    wanted = host_platform() if platform is None else parse_platform(platform)
    skipped = Skipped()
    async with library.scratch() as scratch:
        importer = Importer(scratch, ref=ref, platform=wanted, skipped=skipped)
        try:
            if isinstance(source, str) and text.startswith(programs.SCHEMES):
                archive = scratch / "saved"
                await programs.save(text, archive)
                found = await threads.run(importer.find, archive, text)
                found = found._replace(name=text.partition(":")[2])
            elif text == STDIN:
                found = await threads.run(importer.stream, stdin, "standard input")
            else:
                found = await threads.run(importer.find, Path(source), text)
            given = name or found.name or default_name(text)
            require_free(given, text)
            image = await library.add(found.material, name=given, is_local=True)
        finally:
            importer.close()
    return Imported(image, skipped)


def require_reference(name: str) -> None:
    """Raise `UsageError` for a name by which no image could be asked for."""
    try:
        Reference.parse(name)
    except UsageError as error:
        raise UsageError(
            f"{name!r} can't be the name of an image",
            hint="give it a name such as app or app:1.2",
        ) from error


def require_free(name: str, source: str) -> None:
    """Raise `UsageError` for the name of an image that ramet makes itself, which would always be meant."""
    if canonical_name(name).removesuffix(":latest") in (*IMAGE_NAMES, *ALIASES):
        raise UsageError(
            f"{source} can't be called {name}: that is an image which ramet makes itself",
            hint="give it another name: --name NAME",
        )


def default_name(source: str) -> str:
    """Return a name for the image of a path: its last part in lower case, without suffixes.

    Raises `UsageError` where that leaves nothing.
    """
    stem = "" if source == STDIN else Path(source).resolve().name
    while match := _SUFFIX.search(stem):
        stem = stem[: match.start()]
    stem = _SEPARATORS.sub("-", stem.lower()).strip("._-")
    if not stem:
        raise UsageError("the image needs a name", hint="give it one: --name NAME")
    return stem
