"""`run`: by a cold boot, from a boot snapshot, and a fork beside them; the first capture; memory of eight."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import ramet
from benchmarks import guests
from benchmarks.figures import Key
from benchmarks.run import Benchmark, Plot, Run
from ramet.errors import UnavailableError
from ramet.images.library.library import Library
from ramet.images.library.obtain import read_file
from ramet.images.library.records import Layer, Material
from ramet.images.linux import find_busybox
from ramet.memory.integrity import digest
from ramet.model.container import ImageConfig
from ramet.system import threads
from ramet.system.files import allocated_bytes

OUTPUT: Final = "from the call to the first output"
PAUSE: Final = "pause of the first branch"
COPIED: Final = "bytes that the first branch copies"
PSS: Final = "PSS of each of eight instances"
COLD: Final = "booted"
FIRST: Final = "first run: booted, kept, forked"
SNAPSHOT: Final = "from the boot snapshot"
FORK: Final = "fork of a template, and the program in it"
_IMAGE: Final = "bench-runs"
_MEMORY: Final = "256M"
_TOGETHER: Final = 8


async def measure(run: Run, driver: str) -> None:
    """In turn: a boot, a run, a fork; of a container image with one static program where Linux runs."""
    if driver == "qemu":
        await _add_image(run.host, run.scratch)
    cold = partial(_first_output, run.host, driver, cold=True)
    warm = partial(_first_output, run.host, driver, cold=False)
    clock = guests.Clock()
    await (await warm()).remove(force=True)
    run.ledger.put(OUTPUT, f"{driver}, {FIRST}", clock.ms)
    template = await (await _start(run.host, driver, cold=True)).template()
    for number in run.rounds(12, 2):
        if number < 4:
            await _timed(run, f"{driver}, {COLD}", cold)
        await _timed(run, f"{driver}, {SNAPSHOT}", warm)
        await _timed(run, f"{driver}, {FORK}", partial(_fork_output, template, driver))
    for how, others in ((SNAPSHOT, (FORK, COLD)), (FIRST, (COLD,))):
        for other in others:
            run.ledger.compare(
                f"{driver}: {how} over {other}",
                Key(OUTPUT, f"{driver}, {how}"),
                Key(OUTPUT, f"{driver}, {other}"),
            )
    await template.remove(force=True)
    for is_cold in (True, False):
        await _captures(run, driver, is_cold=is_cold)
        await _memory(run, driver, is_cold=is_cold)


async def _timed(run: Run, who: str, make: Callable[[], Awaitable[ramet.VM]]) -> None:
    clock = guests.Clock()
    vm = await make()
    run.ledger.put(OUTPUT, who, clock.ms)
    await vm.remove(force=True)


async def _first_output(host: ramet.Host, driver: str, *, cold: bool) -> ramet.VM:
    """An instance whose main process has said its first word; of the probe, whose command has ended."""
    if driver != "qemu":
        vm = await _start(host, driver, cold=cold)
        await vm.exec("true", check=True)
        return vm
    vm = await host.run(_IMAGE, driver=driver, memory=_MEMORY, cold=cold, start_main=False)
    async with vm.start_main() as main:
        await _first_chunk(main)
    return vm


async def _fork_output(template: ramet.VM, driver: str) -> ramet.VM:
    (fork,) = await template.fork(1)
    if driver != "qemu":
        await fork.exec("true", check=True)
    else:
        async with fork.process("/bin/busybox", "echo", "first") as program:
            await _first_chunk(program)
    return fork


async def _first_chunk(program: ramet.Process) -> None:
    async for _ in program.output():
        return
    raise UnavailableError("the program has said nothing")


async def _start(host: ramet.Host, driver: str, *, cold: bool) -> ramet.VM:
    """An instance that runs nothing yet."""
    if driver != "qemu":
        return await host.run("probe", driver=driver, memory=_MEMORY, cold=cold)
    return await host.run(_IMAGE, driver=driver, memory=_MEMORY, cold=cold, idle=True)


async def _captures(run: Run, driver: str, *, is_cold: bool) -> None:
    who = f"{driver}, {COLD if is_cold else SNAPSHOT}"
    for _ in run.rounds(3, 1, least=1):
        vm = await _start(run.host, driver, cold=is_cold)
        (branch,) = await vm.fork(1)
        run.ledger.put(PAUSE, who, branch.receipt.timings_ms.pause)
        memory = branch.receipt.memory
        whole = allocated_bytes(branch.directory / memory.file)
        run.ledger.put(COPIED, who, whole if is_cold else memory.delta_bytes, "bytes")
        for made in (branch, vm):
            await made.remove(force=True)


async def _memory(run: Run, driver: str, *, is_cold: bool) -> None:
    if run.is_late and is_cold:
        return
    made = [await _start(run.host, driver, cold=is_cold) for _ in range(run.pick(_TOGETHER, 2))]
    for vm in made:
        pid = (await vm.info()).pid
        assert pid is not None
        run.ledger.put(
            PSS, f"{driver}, {COLD if is_cold else SNAPSHOT}", guests.memory_of(pid)["Pss"], "bytes"
        )
    for vm in made:
        await vm.remove(force=True)


async def _add_image(host: ramet.Host, scratch: Path) -> None:
    """One static program, in one layer, that prints a line."""
    path = scratch / "runs.tar"
    await threads.run(_write_layer, path)
    material = Material(
        ImageConfig(entrypoint=("/bin/busybox", "echo", "first")),
        [Layer("busybox", None, partial(read_file, path), path.stat().st_size)],
        None,
        "a benchmark",
    )
    await Library(host.home / "images", part_digest=digest).add(material, name=_IMAGE, is_local=True)
    path.unlink()


def _write_layer(path: Path) -> None:
    program = find_busybox().read_bytes()
    with tarfile.open(path, "w") as archive:
        for name in ("bin", "etc", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(directory)
        info = tarfile.TarInfo("bin/busybox")
        info.size, info.mode = len(program), 0o755
        archive.addfile(info, io.BytesIO(program))


BENCHMARK: Final = Benchmark(
    name="runs",
    title="Runs",
    about="A container image with one static program that prints a line, on QEMU; the probe and its first "
    "command on Firecracker. From the call to the first output: booted, from the boot snapshot, and a fork "
    "of a template with the same program run in it, in turn; the first run of a shape once. Then the first "
    "branch of an instance, and eight instances at once.",
    measure=measure,
    budget_s=45,
    plots=(Plot(OUTPUT, "From the call to the first output", log_y=True),),
)
