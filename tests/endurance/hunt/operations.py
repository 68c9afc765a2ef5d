"""What a hunt asks of ramet, as data: in this process, or in one that is killed in the middle of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import ramet
from ramet.engine.maintenance import compaction, worker
from ramet.engine.maintenance.memory_jobs import memory_job
from ramet.engine.manifest import read_manifest
from ramet.errors import LockBusyError
from ramet.model.forks import ForkCall, ForkError
from ramet.paths import Home
from ramet.system.locks import file_lock

Verb = str
LOCK_LIMIT_S = 60.0
LIVES_ON = {"pause", "resume", "standby", "restore", "rewind", "template", "stop", "start", "remove"}
"""Verbs that change the one instance that they are asked of."""


@dataclass(frozen=True)
class Operation:
    """One call: `target` is the id of an instance or of a snapshot, or empty."""

    verb: Verb
    target: str = ""
    name: str = ""
    """Of what is made; the snapshot that is gone back to."""
    count: int = 1
    """How many forks; 2 for a snapshot that is compressed, which may be an instance, too."""
    file: str = ""
    share_memory: bool = True

    def __str__(self) -> str:
        words = [self.verb, self.target, self.name, str(self.count) if self.count > 1 else ""]
        return " ".join(word for word in words if word)


_EAGER = {"COMPACT_ABOVE_BYTES": 0, "SHORTEN_ABOVE_FILES": 1}


@contextmanager
def eager_compaction() -> Iterator[None]:
    """Every delta is too large, and every chain too long, inside."""
    limits = {name: getattr(compaction, name) for name in _EAGER}
    for name, limit in _EAGER.items():
        setattr(compaction, name, limit)
    try:
        yield
    finally:
        for name, limit in limits.items():
            setattr(compaction, name, limit)


async def perform(host: ramet.Host, operation: Operation) -> None:
    """Carry it out; what it makes stays when the Host is left."""
    target, name = operation.target, operation.name
    match operation.verb:
        case "fork":
            source = await host.get(target)
            await _keep(source.fork(operation.count, name=name, share_memory=operation.share_memory))
        case "fork_snapshot":
            snapshot = await host.snapshot(target)
            await _keep(snapshot.fork(operation.count, name=name, share_memory=operation.share_memory))
        case "snapshot":
            await (await host.get(target)).snapshot(name)
        case "rewind":
            await (await host.get(target)).rewind(name)
        case "remove":
            await (await host.get(target)).remove(force=True)
        case "remove_snapshot":
            await (await host.snapshot(target)).remove()
        case "compress" | "decompress":
            kept = host.snapshot(target) if operation.count == 2 else host.get(target)
            with suppress(LockBusyError):  # it is being forked beside
                await getattr(await kept, operation.verb)()
        case "export":
            await (await host.snapshot(target)).export(operation.file)
        case "import":
            await host.import_snapshot(operation.file, name=name)
        case "compact":
            directory = Path(operation.file)
            driver = host._opened.driver(read_manifest(directory).driver)
            home = Home(host.home)
            # As the home's worker does it: should this process be killed, the next one finds work to do. And
            # with the job, without which it would remove what another call unpacks beside it.
            async with file_lock(home.worker_lock, wait_s=LOCK_LIMIT_S):
                home.work_under_way.touch()
                with eager_compaction(), suppress(LockBusyError):
                    async with memory_job(home, directory, "compact", name=directory.name, wait_s=0):
                        await compaction.compact_capture(directory, driver)
                home.work_under_way.unlink()
        case "work":
            home = Home(host.home)
            home.work_to_do.touch()
            with eager_compaction():
                await worker.work(home)
        case "nothing":
            pass
        case _:
            await getattr(await host.get(target), operation.verb)()


async def _keep(call: ForkCall[ramet.VM]) -> None:
    """The forks that live stay, also when others failed."""
    failed: ForkError[ramet.VM] | None = None
    try:
        made = await call
    except ForkError as error:
        failed, made = error, error.forks  # type: ignore[assignment]
    for vm in made:
        await vm.detach()
    if failed is not None:
        raise failed
