"""What one would do without ramet: boot a guest afresh, or load a state with all of its RAM from a file."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any, Final

import ramet
from benchmarks import floor, guests
from benchmarks.figures import Key
from benchmarks.latency import READY
from benchmarks.run import Benchmark, Plot, Run

_BACKEND: Final = r"-object memory-backend-file,id=mem,size=(\d+),mem-path=mem,share=off(,[a-z=,]+)?"
PSS: Final = "PSS when ready"
DISK: Final = "disk of the state"


class WholeRam(floor.Qemu):
    """A QEMU whose RAM is anonymous: its state is a migration stream with all of it, as `migrate` and
    `savevm` write it. The guest is a fork of the template, so it has been through the same.
    """

    def __init__(self, program: str, template: Path, source: Path) -> None:
        super().__init__(program, template, source)
        self._mapped = self.words
        words = re.sub(_BACKEND, r"-object memory-backend-ram,id=mem,size=\1", " ".join(self.words))
        self.words = words.split()

    def save(self, directory: Path) -> None:
        """Write the stream; what is forked from then on is that. The guest that is saved ends."""
        shared, self.words = self.words, self._mapped
        fork = floor.Fork(directory)
        try:
            floor.put_parts(fork, self.source)
            with self._spawned(fork) as monitor:
                self._execute(monitor, "qmp_capabilities")
                self._incoming(monitor, fork.directory / "vmstate")
                with (directory / "stream").open("wb") as stream:
                    uri = self._give(monitor, stream.fileno(), 1)
                    # By itself it holds back: 128 MiB a second.
                    unbounded: dict[str, Any] = {"max-bandwidth": 1 << 40}
                    self._execute(monitor, "migrate-set-parameters", **unbounded)
                    done = self._execute(monitor, "migrate", uri=uri)
                    floor.receive_until(monitor, lambda received: b'"completed"' in done + received)
        finally:
            fork.end()
            self.words = shared
        (self.source / "vmstate").unlink()
        shutil.move(directory / "stream", self.source / "vmstate")
        shutil.rmtree(directory)


class FreshBoot(floor.Qemu):
    """A QEMU that boots kernel and initramfs of the template, on RAM with nothing in it."""

    def __init__(self, program: str, template: Path, source: Path) -> None:
        super().__init__(program, template, source)
        self._parts = template
        whole = re.sub(_BACKEND, r"-object memory-backend-ram,id=mem,size=\1", floor.command_line(template))
        found = re.search(r" -append (.*?)(?= -[a-z]|$)", whole)
        kernel_words = found[1].strip() if found else ""
        whole = re.sub(r" -append .*?(?= -[a-z]|$)| -S\b| -incoming \S+", "", whole)
        self.words = [program, *whole.split(), "-append", kernel_words]

    def start(self, fork: floor.Fork) -> None:
        fork.directory.mkdir()
        for name in ("kernel", "initramfs"):
            (fork.directory / name).hardlink_to(self._parts / name)
        with self._spawned(fork):
            assert fork.process is not None
            with floor.connect(fork.directory / "agent0.sock", fork.process) as stream:
                floor.greet(stream)
        fork.mark()


def _until_ready(vmm: floor.Qemu, directory: Path) -> tuple[float, int]:
    """Milliseconds until the guest answered, and what its VMM holds then."""
    fork = floor.Fork(directory)
    try:
        vmm.start(fork)
        took_ms = 1000 * (time.perf_counter() - fork.marks[0])
        assert fork.process is not None
        return took_ms, floor.memory_of(fork.process)[0]
    finally:
        fork.end()
        shutil.rmtree(directory)


async def measure(run: Run, driver: str) -> None:
    """A fork, then each of the others, in turn."""
    base = await run.touched(driver)
    scratch = run.scratch / "instead" / driver
    scratch.mkdir(parents=True)
    if driver == "qemu":
        await _qemu(run, base, scratch)
    else:
        await _firecracker(run, base, scratch)
    for other in ("fresh boot", "whole RAM from a file"):
        for what in (READY, PSS):
            run.ledger.compare(
                f"{driver}: {other} over a fork, {what}",
                Key(what, f"{driver}, {other}"),
                Key(what, f"{driver}, ramet"),
            )


async def _ramet(run: Run, driver: str, base: ramet.VM) -> None:
    async with base.fork(1) as (fork,):
        run.ledger.put(READY, f"{driver}, ramet", fork.receipt.timings_ms.total)
        pss = guests.memory_of(fork.receipt.pid)["Pss"]
        run.ledger.put(PSS, f"{driver}, ramet", pss, "bytes")


async def _qemu(run: Run, base: ramet.VM, scratch: Path) -> None:
    from ramet import config

    program = config.qemu_binary()
    whole = WholeRam(program, base.directory, scratch / "whole")
    whole.save(scratch / "saved")
    run.ledger.put(DISK, "qemu, whole RAM from a file", (whole.source / "vmstate").stat().st_size, "bytes")
    fresh = FreshBoot(program, base.directory, scratch / "fresh")
    for number in run.rounds(5, 1, least=1):
        await _ramet(run, "qemu", base)
        for other, vmm in (("whole RAM from a file", whole), ("fresh boot", fresh)):
            took_ms, pss = _until_ready(vmm, scratch / str(number))
            run.ledger.put(READY, f"qemu, {other}", took_ms)
            run.ledger.put(PSS, f"qemu, {other}", pss, "bytes")


async def _firecracker(run: Run, base: ramet.VM, scratch: Path) -> None:
    program, probe = guests.firecracker_parts()
    vmm = floor.Firecracker(program, base.directory)
    for number in run.rounds(20, 2):
        await _ramet(run, "firecracker", base)
        fork = floor.Fork(scratch / str(number))
        fork.directory.mkdir()
        clock = guests.Clock()
        try:
            vmm.boot(fork, probe, 512)
            run.ledger.put(READY, "firecracker, fresh boot", clock.ms)
            assert fork.process is not None
            pss = floor.memory_of(fork.process)[0]
            run.ledger.put(PSS, "firecracker, fresh boot", pss, "bytes")
        finally:
            fork.end()
            shutil.rmtree(fork.directory)


BENCHMARK: Final = Benchmark(
    name="instead",
    title="What one would do instead",
    about="The same guest of 512 MiB, which has written 64 MiB of it: a fork; QEMU loading its state "
    "and all of its RAM from a file, as `migrate` writes it (and `savevm`, into a qcow2 file); "
    "and a boot. The probe boots in milliseconds, because it has nothing to boot. A fork uses the "
    "fact that Firecracker maps its snapshot privately, so the alternative there is to copy the "
    "mem-file for each guest: see *Touched memory*.",
    measure=measure,
    budget_s=20,
    plots=(Plot(READY, "A fork, and what one would do instead", log_x=True),),
)
