"""The same content twice: imports at once, exports to one name at once, names that several want at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import anyio
import pytest

import ramet
from ramet.engine.manifest import read_manifest
from ramet.errors import DamagedError, NameTakenError, RametError, UsageError
from ramet.model import protocols
from tests.support.shell import COMMAND

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


@pytest.fixture(scope="module")
async def exported_once(
    warm_home: Path, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> Path:
    """A file with a snapshot of a fork, which has a delta."""
    file = tmp_path_factory.mktemp("exported") / "file"
    async with ramet.Host(warm_home) as host, (await host.get("warm")).fork(name="source") as (vm,):
        await vm.exec("sh", "-c", "echo here > /run/mark", check=True)
        snapshot = await vm.snapshot("base", labels={"a": "b"})
        await snapshot.export(file)
        await snapshot.remove()
    return file


@pytest.fixture
def exported(exported_once: Path, tmp_path: Path) -> Path:
    """That file, for one test: it may be damaged."""
    return Path(shutil.copy(exported_once, tmp_path / "file"))


async def at_once(*work: Awaitable[Any]) -> list[Any]:
    """What each gives, or its error."""
    results: list[Any] = [None] * len(work)

    async def one(number: int, step: Awaitable[Any]) -> None:
        try:
            results[number] = await step
        except RametError as error:
            results[number] = error

    async with anyio.create_task_group() as tasks:
        for number, step in enumerate(work):
            tasks.start_soon(one, number, step)
    return results


async def test_imports_of_one_file_are_one_snapshot(exported: Path, host: ramet.Host) -> None:
    made = await at_once(*(host.import_snapshot(exported) for _ in range(3)))
    assert len({vm.id for vm in made}) == 1
    (only,) = await host.snapshots()
    again = await host.import_snapshot(exported)
    assert again.id == only.id, "also later"
    assert [path.name for path in (host.home / "snapshots").iterdir()] == [only.id]
    assert (await again.verify()).ok
    async with again.fork() as (fork,):
        assert (await fork.exec("cat", "/run/mark")).text == "here\n"
    await again.remove()


async def test_imports_by_processes_at_once_are_one_snapshot(exported: Path, host: ramet.Host) -> None:
    environment = {**os.environ, "RAMET_HOME": str(host.home)}
    running = [
        subprocess.Popen(
            [*COMMAND, "snapshot", "import", str(exported)], env=environment, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    said = [(await anyio.to_thread.run_sync(process.communicate))[0] for process in running]
    assert said[0] == said[1] != b""
    (only,) = await host.snapshots()
    await (await host.snapshot(only.id)).remove()


async def test_other_names_share_the_files(exported: Path, host: protocols.Host) -> None:
    first, second = await at_once(
        host.import_snapshot(exported, name="first"), host.import_snapshot(exported, name="second")
    )
    assert first.id != second.id
    for part in read_manifest(first.directory).parts:
        assert (first.directory / part).stat().st_ino == (second.directory / part).stat().st_ino
    with pytest.raises(NameTakenError):
        await host.import_snapshot(exported, name="first")
    assert (await first.info()).labels == (await second.info()).labels == {"a": "b"}
    await first.remove()
    assert (await second.verify()).ok
    async with second.fork() as (fork,):
        assert (await fork.exec("cat", "/run/mark")).text == "here\n"
    await second.remove()


async def test_a_damaged_file_isnt_taken_for_what_is_here(exported: Path, host: protocols.Host) -> None:
    good = await host.import_snapshot(exported)
    data = bytearray(exported.read_bytes())
    data[-len(data) // 2] ^= 0xFF
    exported.write_bytes(data)
    with pytest.raises(DamagedError):
        await host.import_snapshot(exported)
    assert [snapshot.id for snapshot in await host.snapshots()] == [good.id]
    await good.remove()


async def test_two_exports_to_one_name_make_one_file(
    exported: Path, host: protocols.Host, tmp_path: Path
) -> None:
    snapshot = await host.import_snapshot(exported)
    target = tmp_path / "target"
    results = await at_once(*(snapshot.export(target) for _ in range(3)))
    refused = [result for result in results if isinstance(result, UsageError)]
    assert len(refused) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"file", "target"}
    assert (await host.import_snapshot(target)).id == snapshot.id
    await snapshot.remove()


async def test_one_of_many_gets_a_name(warm: ramet.VM) -> None:
    async with warm.fork() as (vm,):
        taken = await at_once(*(vm.snapshot("same") for _ in range(3)))
        assert sum(isinstance(vm, NameTakenError) for vm in taken) == 2
        for snapshot in taken:
            if isinstance(snapshot, ramet.Snapshot):
                await snapshot.remove()
        forks = await at_once(*(_forked(warm, "same") for _ in range(3)))
        assert sum(isinstance(vm, NameTakenError) for vm in forks) == 2
        for fork in forks:
            if isinstance(fork, ramet.VM):
                await fork.remove(force=True)


async def _forked(warm: ramet.VM, name: str) -> ramet.VM:
    (fork,) = await warm.fork(name=name)
    return fork
