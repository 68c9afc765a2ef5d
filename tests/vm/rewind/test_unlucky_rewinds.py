"""Rewinds of a probe under Firecracker, when something goes wrong at an unlucky moment."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.engine.restore import in_place
from ramet.errors import FilesystemError
from ramet.model import protocols
from ramet.system import spawn
from tests.vm.capture.test_unlucky_moments import fill, probe_source, value_in

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

source = probe_source

REWIND_AND_DIE = """
import os, signal, sys
import anyio
import ramet
from ramet.engine.restore import in_place

async def main():
    async with ramet.Host(sys.argv[1]) as host:
        vm = await host.get("source")
        enter = in_place._enter

        def entered(*arguments):
            living = enter(*arguments).vmm
            os.kill(living.process.pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

        in_place._enter = entered
        await vm.rewind("then")

anyio.run(main)
"""


async def test_a_filesystem_that_cannot_exchange_leaves_the_instance_as_it_was(
    probes: ramet.Host, source: ramet.VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    await source.snapshot("then")
    await fill(source, 2)

    def refuses(*_: object) -> None:
        raise FilesystemError("can't exchange", number=errno.EINVAL)

    with monkeypatch.context() as patched:
        patched.setattr(in_place, "exchange", refuses)
        with pytest.raises(FilesystemError, match="can't exchange"):
            await source.rewind("then")
    assert await value_in(source) == 2
    assert len(spawn.spawned_in(source.directory)) == 1
    assert list((probes.home / "staging").iterdir()) == []
    await source.rewind("then")
    assert await value_in(source) == 1


async def test_a_rewind_of_which_nobody_is_left_is_finished_by_the_next(
    home: Path, source: protocols.VM
) -> None:
    await source.exec("bpoke", "3", "0x1111", check=True)
    await source.snapshot("then")
    await source.exec("bpoke", "3", "0x2222", check=True)
    done = await anyio.run_process([sys.executable, "-c", REWIND_AND_DIE, str(home)], check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    async with ramet.Host(home) as host:
        vm = await host.get("source")
        assert (await vm.info()).state == "failed"
        assert list((home / "staging").iterdir()) == []
        # The record and the directory, with its disk, are of the same moment.
        await vm.stop()
        await vm.start()
        assert int((await vm.exec("bpeek", "3", check=True)).text.split()[0], 16) == 0x1111
