"""Following a log that is being written, trimmed and removed."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from ramet.errors import VmmError
from ramet.system import bounded_log
from ramet.system.follow import CHUNK_BYTES, POLL_S, follow
from ramet.units import MIB

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "console.log"
    path.touch()
    return path


def append(log: Path, data: bytes) -> None:
    with log.open("ab") as writer:
        writer.write(data)


class Follower:
    """Collects what a follow yields, and lets a test wait for it."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.at: list[float] = []
        self.stop = anyio.Event()
        self.ended = False
        self.reasons: list[str] = []
        self._news = anyio.Event()

    @property
    def text(self) -> bytes:
        return b"".join(self.chunks)

    async def run(self, log: Path, history_bytes: int = MIB) -> None:
        notice = self.reasons.append
        async for chunk in follow(log, until=self.stop.wait, history_bytes=history_bytes, on_poll=notice):
            self.at.append(time.monotonic())
            self.chunks.append(chunk)
            self._news.set()
        self.ended = True
        self._news.set()

    async def wait_for(self, end: bytes) -> None:
        with anyio.fail_after(10):
            while not self.text.endswith(end):
                assert not self.ended
                self._news = anyio.Event()
                await self._news.wait()


@pytest.mark.timing
async def test_what_is_there_then_what_is_appended_then_the_last_words(log: Path) -> None:
    append(log, b"before\n")
    follower = Follower()
    async with anyio.create_task_group() as group:
        group.start_soon(follower.run, log)
        await follower.wait_for(b"before\n")
        append(log, b"live\n")
        await follower.wait_for(b"live\n")
        append(log, b"last words\n")
        follower.stop.set()
    assert follower.text == b"before\nlive\nlast words\n"
    assert follower.reasons == []


@pytest.mark.deep
@pytest.mark.timing
@pytest.mark.alone
async def test_news_come_without_polling(log: Path) -> None:
    follower = Follower()
    delays_s = []
    async with anyio.create_task_group() as group:
        group.start_soon(follower.run, log)
        for number in range(5):
            await anyio.sleep(0.02)
            line = b"%d\n" % number
            written = time.monotonic()
            append(log, line)
            await follower.wait_for(line)
            delays_s.append(follower.at[-1] - written)
        follower.stop.set()
    assert sorted(delays_s)[2] < POLL_S / 5


@pytest.mark.timing
async def test_a_trim_in_between_neither_stops_it_nor_repeats_anything(log: Path) -> None:
    data = b"".join(b"%06d\n" % number for number in range(200_000))
    append(log, data)
    follower = Follower()
    async with anyio.create_task_group() as group:
        group.start_soon(follower.run, log)
        await follower.wait_for(b"199999\n")
        assert bounded_log.trim(log)
        append(log, b"after the trim\n")
        await follower.wait_for(b"after the trim\n")
        follower.stop.set()
    assert follower.text == data[-MIB:] + b"after the trim\n"
    assert max(map(len, follower.chunks)) <= CHUNK_BYTES


async def test_history_reaches_into_the_part_that_was_cut_off(log: Path) -> None:
    append(log, b"line\n" * 300_000)
    bounded_log.trim(log)
    append(log, b"since\n")
    stopped = anyio.Event()
    stopped.set()
    chunks = [chunk async for chunk in follow(log, until=stopped.wait, history_bytes=16)]
    assert b"".join(chunks) == b"line\nline\nsince\n"


@pytest.mark.timing
async def test_it_ends_with_the_file(log: Path) -> None:
    follower = Follower()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(follower.run, log)
            append(log, b"short life\n")
            await follower.wait_for(b"short life\n")
            log.unlink()
    assert follower.ended


@pytest.mark.timing
async def test_a_log_that_isnt_there_yet_is_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "late.log"
    follower = Follower()
    async with anyio.create_task_group() as group:
        group.start_soon(follower.run, log)
        await anyio.sleep(0.01)
        append(log, b"here\n")
        await follower.wait_for(b"here\n")
        follower.stop.set()
    stopped = anyio.Event()
    stopped.set()
    assert [chunk async for chunk in follow(tmp_path / "never.log", until=stopped.wait)] == []


@contextmanager
def room_for_one_descriptor() -> Iterator[None]:
    """The next open file is the last one that this process may have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path("/dev/null").open("rb") as probe:
        lowest_free = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.timing
async def test_without_inotify_it_polls_and_says_why(log: Path) -> None:
    follower = Follower()
    async with anyio.create_task_group() as group:
        with room_for_one_descriptor():
            group.start_soon(follower.run, log, 0)
            await anyio.wait_all_tasks_blocked()
        append(log, b"polled\n")
        await follower.wait_for(b"polled\n")
        follower.stop.set()
    assert len(follower.reasons) == 1
    assert "Too many open files" in follower.reasons[0]


async def test_a_guest_that_never_pauses_doesnt_keep_the_loop(log: Path) -> None:
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(other_work)
        append(log, b"x" * CHUNK_BYTES)
        async with aclosing(follow(log, until=anyio.sleep_forever)) as chunks:
            count = 0
            async for _ in chunks:
                count += 1
                append(log, b"x" * CHUNK_BYTES)
                if count == 50:
                    break
        group.cancel_scope.cancel()
    assert turns >= 25


async def test_what_until_raises_comes_out_as_it_is(log: Path) -> None:
    async def fail() -> None:
        raise VmmError("gone")

    with pytest.raises(VmmError, match="gone"):
        async for _ in follow(log, until=fail):
            pass
