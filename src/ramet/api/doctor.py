"""Checks of this machine: the guests that it can run, and the obstacles."""

from __future__ import annotations

import os
from pathlib import Path

from ramet import arguments, config
from ramet.engine.doctor import examine
from ramet.model.doctor import DoctorReport
from ramet.surface import exported


@exported
async def doctor(home: str | os.PathLike[str] | None = None) -> DoctorReport:
    """Examine this machine: KVM, the drivers, the parts of guests, limits, and the filesystem of `home`.

    The user's own home is examined unless `home` is given. No home is made, and only the cached verdict on
    KVM changes. `DoctorReport.ok` is true if a driver can run guests here; each `Check` that isn't ok has
    advice. Raises `UnavailableError` when no path is known for the home or for the cache, `UsageError` for a
    `home` that is no path.
    """
    given = arguments.optional(arguments.path)(home, "home of doctor")
    root = config.home_directory() if given is None else Path(given)
    return await examine(root, config.cache_directory())
