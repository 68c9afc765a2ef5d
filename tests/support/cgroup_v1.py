"""Real cgroups (v1), made for a test below the one that the tests run in. That wants root."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet.system import cgroups

_GONE_WITHIN_S = 20


@contextmanager
def v1_cgroup(controller: str, **limits: int) -> Iterator[Path]:
    """The directory of a cgroup with those limits (`memory.limit_in_bytes` is `limit_in_bytes`). Empty again
    at the end, or the test fails.
    """
    own = next((group for group in cgroups.groups(controller) if group.version == 1), None)
    if own is None or os.geteuid() != 0:
        pytest.skip(f"a cgroup needs root and a v1 hierarchy with `{controller}`")
    place = own.directory / f"ramet-test-{secrets.token_hex(4)}"
    try:
        place.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        for name, value in limits.items():
            (place / f"{controller}.{name}").write_text(str(value))
        yield place
    finally:
        deadline = time.monotonic() + _GONE_WITHIN_S
        while (place / "cgroup.procs").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.05)
        place.rmdir()


def inside(place: Path, *command: str) -> list[str]:
    """A command line that joins the cgroup and then becomes `command`."""
    return ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(place), *command]
