"""The ladder that VM tests climb: a home, a booted instance, a template, its forks; and the check that
nothing is left.

Real parts only: QEMU, Debian's kernel, the agent. A machine that lacks one skips these tests with the reason.
What names no driver is run on QEMU, on every machine; the tests of Firecracker name it.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio.pytest_plugin
import pytest

import ramet
from ramet import config
from ramet.errors import UnavailableError
from ramet.model import protocols
from ramet.system import spawn
from ramet.testing.leftovers import living_in as living_in

pytest_plugins = ["tests.side_by_side"]

SHORTLY = ("sh", "-c", 'sleep 0.3; exec "$0" "$@"')
"""Before a command in a guest that ends the guest: the answer that it was started is out before that."""


def _call_no_thread_asyncios(name: str | None) -> None:
    """Leave it to the loop that runs to say what runs."""


def pytest_configure() -> None:
    """Ctrl-C works in the programs that tests start, also in a run that a shell script has put into the
    background: there it is ignored, which they would inherit (POSIX, Shell Command Language, 2.11).
    """
    os.environ.setdefault("RAMET_DRIVER", "qemu")
    # A test has a home of its own: its first run would boot, and be captured for nobody. Who tests boot
    # snapshots, or what documents show, deletes the variable.
    os.environ.setdefault("RAMET_BOOT_SNAPSHOTS", "0")
    # Where sniffio is installed (trio brings it) anyio's plugin calls the whole thread asyncio's for as long
    # as a fixture of the session lives. Tests that run a loop of their own are none of its business.
    setattr(anyio.pytest_plugin, "set_current_async_library", _call_no_thread_asyncios)  # noqa: B010
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _signals_stay_as_they_were() -> Iterator[None]:
    """Put back what a test has made of signals: the programs that later tests start inherit it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The only event loop that qemu.qmp runs on."""
    return "asyncio"


def assert_nothing_left(home: Path) -> None:
    """No process, no directory of an instance, and so no socket, and none of a snapshot of `home` is left."""
    assert living_in(home) == []
    for kind in ("instances", "snapshots", "staging", "pool"):
        directory = home / kind
        assert not directory.exists() or list(directory.iterdir()) == []


@pytest.fixture(scope="session")
def homes() -> Iterator[Path]:
    """Where test homes are made: on the file system of the image cache, so that parts can be linked."""
    cache = config.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tests-", dir=cache) as directory:
        yield Path(directory)
        # A test that failed in the middle of something may have left VMMs: they go with their homes.
        for made in Path(directory).iterdir():
            for running in spawn.spawned_below(made / "instances").values():
                for process in running:
                    os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def home(homes: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A home of one test's own. Fails the test when something is left in it."""
    directory = Path(tempfile.mkdtemp(dir=homes))
    yield directory
    assert_nothing_left(directory)


@pytest.fixture
async def host(home: Path) -> AsyncIterator[protocols.Host]:
    """An open Host on a home of its own; what the test made leaves with it."""
    async with ramet.Host(home) as opened:
        yield opened


@pytest.fixture(scope="session")
async def warm_home(homes: Path, anyio_backend: str) -> AsyncIterator[Path]:
    """A home with one template, `warm`, whose guest has 8 MiB of random data in /tmp/data.

    Booted once for all tests.
    """
    directory = Path(tempfile.mkdtemp(dir=homes, prefix="warm-"))
    try:
        async with ramet.Host(directory) as host:
            vm = await host.run("builtin", name="warm", memory="256M")
            await vm.exec("sh", "-c", "head -c 8388608 /dev/urandom > /tmp/data", check=True)
            await (await vm.template()).detach()
    except UnavailableError as error:
        pytest.skip(f"this machine can't run the built-in guest: {error}")
    yield directory
    async with ramet.Host(directory) as host:
        for instance in await host.list(everything=True):
            await (await host.get(instance.id)).remove(force=True)
    assert_nothing_left(directory)


@pytest.fixture
async def warm_host(warm_home: Path) -> AsyncIterator[protocols.Host]:
    """A Host on the warm home. Afterwards only the template is there."""
    async with ramet.Host(warm_home) as host:
        yield host
    async with ramet.Host(warm_home) as host:
        left = [instance.name for instance in await host.list(everything=True)]
        for name in left:
            if name != "warm":
                await (await host.get(name)).remove(force=True)
    assert left == ["warm"]
    assert living_in(warm_home) == []


@pytest.fixture
async def warm(warm_host: protocols.Host) -> protocols.VM:
    """The template."""
    return await warm_host.get("warm")
