"""Images and kernels for guests, as `--json` prints them."""

from __future__ import annotations

from typing import Literal

import msgspec


class ImageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An image in the cache, or one that is made when it is first used (then its figures are null).

    A bare-metal guest has no initramfs: null.
    """

    name: str
    key: str | None
    kernel_version: str | None
    kernel_bytes: int | None
    initramfs_bytes: int | None
    created_at: str | None
    directory: str | None


class KernelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel for guests. The first of the list is the one that is used."""

    version: str
    path: str
    source: Literal["setting", "cache", "host"]
    modules: str | None
    """The directory of its modules, or null when it has built in all that it needs."""
