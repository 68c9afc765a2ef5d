"""Blocking work: in a thread, next in one that is there, or here when no thread can be started."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.errors import LimitReachedError
from ramet.system import threads

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

SOURCES = Path(ramet.__file__).parent
_OTHER_WAYS = re.compile(
    r"\bto_thread\b|run_in_executor|Thread\(|ThreadPoolExecutor|run_process\(|open_process\("
    r"|create_subprocess_|anyio\.Path|open_file\(.*await|getaddrinfo"
)


def test_there_is_one_way_to_a_thread() -> None:
    """asyncio's and anyio's subprocesses are another: they start a thread for each child (Python 3.11).

    `ramet.sync` has a thread for its loop, and tells of a limit itself; a hint names trio's way.
    """
    found = [
        f"{path.relative_to(SOURCES)}: {line.strip()}"
        for path in SOURCES.rglob("*.py")
        if path.relative_to(SOURCES) != Path("system/threads.py")
        for line in path.read_text().splitlines()
        if _OTHER_WAYS.search(line) and "trio.to_thread" not in line
    ]
    assert found == ["sync.py: self._thread = threading.Thread("]


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pthread_create(3) has it when a limit is met."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_nobody_writes_its_name_without_a_watcher() -> None:
    """`owners.owner` gives it, and starts one. Elsewhere it is compared, or a watcher is there already."""
    may = {
        "system/owners.py",
        "system/process_ref.py",
        "engine/pool/directory.py",
        "engine/pool/controller.py",
        "api/temporary_home.py",
    }
    found = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if "this_process()" in path.read_text()
    }
    assert found <= may


@pytest.fixture
def no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread can be started."""
    refuse_threads(monkeypatch)


async def test_it_is_done_in_a_thread() -> None:
    assert await threads.run(threading.get_ident) != threading.get_ident()


async def test_it_is_done_here_when_there_is_none(no_more: None) -> None:
    assert await threads.run(threading.get_ident) == threading.get_ident()


@pytest.mark.timing
async def test_it_waits_for_one_that_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    idents: list[int] = []

    async def occupy() -> None:
        await threads.run(go_on.wait, 20)

    async def wait() -> None:
        idents.append(await threads.run(threading.get_ident))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(occupy)
        await anyio.sleep(0.05)  # it has its thread
        with monkeypatch.context() as patch:
            refuse_threads(patch)
            # Several: they must not keep each other awake.
            for _ in range(3):
                tasks.start_soon(wait)
            await anyio.sleep(0.05)
            assert idents == []
            go_on.set()
            with anyio.fail_after(20):
                while len(idents) < 3:
                    await anyio.sleep(0.01)
    assert threading.get_ident() not in idents


async def test_what_waits_for_others_is_refused_and_not_begun(no_more: None) -> None:
    begun: list[int] = []
    with pytest.raises(LimitReachedError, match="no thread can be started"):
        await threads.run(begun.append, 1, waits_for_others=True)
    assert begun == []


async def test_the_same_words_from_the_work_itself_are_its_own() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="can't start new thread"):
        await threads.run(work)
    assert calls == [1]


async def test_a_look_for_cancellation_works_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    await threads.run(threads.check_cancelled)
    refuse_threads(monkeypatch)
    await threads.run(threads.check_cancelled)
