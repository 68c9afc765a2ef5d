"""One finding."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `ok`: true, false (without it there is no guest or no fork), or null (it
    works, with a loss). `advice` is what to do about it, and null when there is nothing to do.
    """

    name: str
    ok: bool | None
    found: str
    advice: str | None = None
