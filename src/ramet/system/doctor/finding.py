"""The result of a check."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """The result of a check.

    `ok`: true, false (there is no guest or no fork without it), or null (it works, with a loss). `advice` is
    the remedy, and null when there is nothing to do.
    """

    name: str
    ok: bool | None
    found: str
    advice: str | None = None
