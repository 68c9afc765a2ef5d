"""The releases of QEMU, each unpacked when a test first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ramet.errors import UnavailableError
from tests.platform.qemu_releases.packages import SUITES, Unpacked, unpacked

Get = Callable[[str], Unpacked]


@pytest.fixture(scope="session")
def get() -> Iterator[Get]:
    """Gives the release of that name, or skips the test with the reason why it can't be had here."""
    had: dict[str, Unpacked | UnavailableError] = {}
    suites = {suite.name: suite for suite in SUITES}
    with ExitStack() as stack:

        def find(name: str) -> Unpacked:
            if name not in had:
                try:
                    had[name] = stack.enter_context(unpacked(suites[name]))
                except UnavailableError as error:
                    had[name] = error
            found = had[name]
            if isinstance(found, UnavailableError):
                pytest.skip(f"QEMU {name}: {found}")
            return found

        yield find


@pytest.fixture(scope="module", params=[suite.name for suite in SUITES])
def release(request: pytest.FixtureRequest, get: Get) -> Unpacked:
    """Each of them."""
    return get(request.param)
