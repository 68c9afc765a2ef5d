"""The container images of a home, and what a new instance takes from one of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ramet.engine.context import Context
from ramet.engine.lifecycle.roots import Container
from ramet.errors import NotFoundError, RegistryError, UnavailableError, UsageError
from ramet.images.library.library import Library
from ramet.images.library.names import host_platform_text, platform_text
from ramet.images.library.obtain import Pull, obtain, parse_platform
from ramet.images.library.records import ContainerImage
from ramet.images.resolve import ALIASES, IMAGE_NAMES
from ramet.memory.integrity import digest
from ramet.model.authorities import MOST_CERTIFICATES, MOST_FILE_BYTES, parse_authorities
from ramet.model.container import main_process
from ramet.model.rootfs import Rootfs, parse_rootfs
from ramet.system import threads
from ramet.system.files import filesystem_errors, open_regular


class Wishes(NamedTuple):
    """The wishes of a user for an instance of a container image; None is what the image says."""

    command: Sequence[str] | None = None
    entrypoint: Sequence[str] | None = None
    env: Mapping[str, str] | None = None
    user: str | None = None
    workdir: str | None = None
    stop_signal: str | None = None
    idle: bool = False
    waits: bool = False
    """True if the main process is started later, by its user."""
    rootfs: str | None = None
    ca: Sequence[str] = ()
    platform: str | None = None

    @property
    def given(self) -> list[str]:
        """The names of the wishes that were expressed."""
        return [name for name, value in self._asdict().items() if value not in (None, (), False)]


def library_of(context: Context) -> Library:
    """Return the library of a home."""
    return Library(context.home.root / "images", part_digest=digest)


def downloads_of(context: Context) -> Path:
    """Return the cache of what registries gave."""
    return context.cache / "oci"


def is_built_in(image: str) -> bool:
    """Tell whether a name is that of an image which ramet makes itself."""
    return image in IMAGE_NAMES or image in ALIASES


def require_no_wishes(image: str, wishes: Wishes) -> None:
    """Raise `UsageError` when something was wished that only a container image's instance has."""
    if wishes.given:
        raise UsageError(
            f"{', '.join(wishes.given)} can't be given to {image}: it is no container image",
            hint="run the command in its guest instead: `ramet exec`, `VM.exec`",
        )


async def container_of(context: Context, text: str, wishes: Wishes, *, pull: Pull) -> Container:
    """Return a container image, obtained first if necessary, as a user wishes it to run.

    Wishes are checked before a registry is asked. Raises `UsageError` for those that can't be;
    `NotFoundError`, `RegistryError` and what else obtaining an image raises; `UnavailableError` for another
    platform.
    """
    rootfs = parse_rootfs(wishes.rootfs) if wishes.rootfs is not None else Rootfs()
    _require_runnable(wishes.platform)
    authorities = await threads.run(_read_authorities, wishes.ca)
    image = await _obtained(context, text, pull, wishes.platform)
    main = main_process(
        image.config,
        image.name,
        command=wishes.command,
        entrypoint=wishes.entrypoint,
        env=wishes.env,
        user=wishes.user,
        workdir=wishes.workdir,
        stop_signal=wishes.stop_signal,
        is_idle=wishes.idle,
        authorities=authorities,
    )
    if wishes.waits:
        main = msgspec.structs.replace(main, is_idle=True)
    return Container(image, main, rootfs)


async def _obtained(context: Context, text: str, pull: Pull, platform: str | None) -> ContainerImage:
    """Obtain an image. A bare word that nobody knows is named together with the images that there are."""
    library = library_of(context)
    try:
        return await obtain(library, downloads_of(context), text, pull=pull, platform=platform)
    except (NotFoundError, RegistryError) as error:
        if any(mark in text for mark in ":/@"):
            raise
        near = difflib.get_close_matches(text, [*IMAGE_NAMES, *ALIASES], n=1)
        if isinstance(error, NotFoundError):
            raise NotFoundError(
                error.message, hint=f"did you mean {near[0]}?" if near else error.hint
            ) from error
        # A word that was mistyped is likelier than a registry that is down, and the message has both.
        raise NotFoundError(
            f"there is no image {text!r} in this home, and its registry can't be asked: {error.message}",
            hint=f"did you mean {near[0]}?" if near else library.near(text) or _there_is(library),
        ) from error


def _there_is(library: Library) -> str:
    names = [*IMAGE_NAMES, *sorted({entry.name for names, _ in library.images() for entry in names})]
    more = "" if len(names) <= 8 else ", …"
    return f"there is: {', '.join(names[:8])}{more}; `ramet image ls` lists all"


def _require_runnable(platform: str | None) -> None:
    here = host_platform_text()
    if platform is not None and platform_text(str(parse_platform(platform))) != here:
        raise UnavailableError(
            f"an image for {platform} can't run here: guests of this machine are {here}",
            hint=f"leave --platform out, or say {here}",
        )


def _read_authorities(files: Sequence[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for file in files:
        with (
            filesystem_errors("read the certificates in", file),
            open_regular(Path(file).resolve()) as descriptor,
            open(descriptor, "rb", closefd=False) as stream,
        ):
            content = stream.read(MOST_FILE_BYTES + 1)
        found |= dict.fromkeys(parse_authorities(content, file))
    if len(found) > MOST_CERTIFICATES:
        raise UsageError(
            f"{len(found)} certificates are too many for a guest",
            hint=f"give those that the guest needs, {MOST_CERTIFICATES} at most",
        )
    return tuple(found)
