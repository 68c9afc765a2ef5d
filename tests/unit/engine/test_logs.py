"""A Host cuts its instances' logs while it is open, whatever lies beside them."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from ramet.engine.vmm import logs
from ramet.paths import CONSOLE_LOG, EVENTS_LOG, VMM_LOG, Home
from ramet.system.bounded_log import ABOVE_BYTES, KEEP_BYTES, previous

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.timing
async def test_logs_that_have_grown_are_cut_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "EVERY_S", 0.01)
    home = Home(tmp_path)
    first, second = home.instance("first"), home.instance("second")
    for directory in (first, second):
        directory.mkdir(parents=True)
        for name in (CONSOLE_LOG, VMM_LOG, EVENTS_LOG):
            (directory / name).write_bytes(b"line\n" * (ABOVE_BYTES // 5 + 1))
    (first / CONSOLE_LOG).unlink()
    os.mkfifo(first / CONSOLE_LOG)  # a VMM's doing: it keeps nobody's logs from being cut
    cut = [
        first / VMM_LOG,
        first / EVENTS_LOG,
        *(second / name for name in (CONSOLE_LOG, VMM_LOG, EVENTS_LOG)),
    ]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(logs.keep_trimmed, home)
        with anyio.fail_after(20):
            while any(log.stat().st_size for log in cut):
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert {previous(log).stat().st_size for log in cut} == {KEEP_BYTES - KEEP_BYTES % 5}
