"""The RAM of a real QEMU guest with two processors at work, against its mem-file, byte for byte."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from ramet.errors import UnavailableError
from ramet.guest.messages import ExecRequest
from ramet.memory.delta import apply_delta, compact, write_delta
from ramet.memory.integrity import DIGEST_BLOCK_BYTES, digest, digest_of_blocks
from ramet.memory.mappings import Mapping, identity_of
from ramet.memory.pagemap import Run, changed_runs_by_pagemap, changed_runs_by_scan
from ramet.memory.pages import LivePages, buffer_pages
from ramet.memory.ram import changed_pages, locate_ram
from ramet.model.record import Machine, RamRange
from ramet.paths import MEM_FILE
from ramet.testing.driver_contract.subject import Subject, booted, restored
from ramet.units import MIB, PAGE_SIZE_BYTES, FileOffset, HostVirtual
from tests import machines

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600)]

PAGE = PAGE_SIZE_BYTES
CAPTURES = 3
WORK = "while :; do dd if=/dev/urandom of=/run/{n} bs=16k count=40 2>/dev/null; echo {n} >> /run/log; done"


class TwoProcessors(Subject):
    """A machine with two of them."""

    def machine(self) -> Machine:
        """The usual one, but for that."""
        return msgspec.structs.replace(super().machine(), cpus=2)


@pytest.fixture
async def linux() -> TwoProcessors:
    """A Linux guest under QEMU, or a skip with the reason."""
    found = await machines.require("qemu", "builtin")
    return TwoProcessors(found.driver, found.image, found.accelerator)


def blocks_of(pid: int, ram: Sequence[RamRange]) -> Iterator[tuple[int, bytearray]]:
    """All of a process's RAM as it sees it, in the blocks of a digest."""
    runs = [
        Run(FileOffset(block.file_offset), block.length_bytes, HostVirtual(block.host_start)) for block in ram
    ]
    for batch in LivePages(pid, runs).batches():
        # Both sizes divide the buffer's, so batches are whole blocks.
        start = batch[0].file_offset
        content = b"".join(bytes(length) if data is None else data.tobytes() for _, length, data in batch)
        for position in range(0, len(content), DIGEST_BLOCK_BYTES):
            block = bytearray(content[position : position + DIGEST_BLOCK_BYTES])
            yield (start + position) // DIGEST_BLOCK_BYTES, block


def differing(pid: int, ram: Sequence[RamRange], mem: Path) -> set[int]:
    """The numbers of the pages in which a process's RAM isn't what the mem-file has."""
    found = set()
    with mem.open("rb") as file:
        for index, block in blocks_of(pid, ram):
            file.seek(index * DIGEST_BLOCK_BYTES)
            below = file.read(DIGEST_BLOCK_BYTES)
            if block != below:
                for position in range(0, len(below), PAGE):
                    if block[position : position + PAGE] != below[position : position + PAGE]:
                        found.add((index * DIGEST_BLOCK_BYTES + position) // PAGE)
    return found


def pages_of(runs: Sequence[Run]) -> set[int]:
    """The numbers of the pages in the runs."""
    return {
        page
        for run in runs
        for page in range(run.file_offset // PAGE, (run.file_offset + run.length_bytes) // PAGE)
    }


@pytest.mark.deep
async def test_no_page_that_differs_is_missed_under_load(linux: TwoProcessors, homes: Path) -> None:
    place = Path(tempfile.mkdtemp(dir=homes, prefix="memory-"))
    size = linux.memory_bytes
    async with booted(linux, place / "source") as source:
        booted_mem = identity_of(source.directory / MEM_FILE)
        ram = locate_ram(source.vmm.process.pid, mem=booted_mem, regions=[size])
        assert sum(block.length_bytes for block in ram) == size
        frozen = await linux.freeze(source)
    base = frozen.directory / MEM_FILE
    before = digest(base)
    mem = identity_of(base)
    deltas = []
    async with restored(linux, frozen, place / "fork") as fork:
        pid = fork.vmm.process.pid
        ram = locate_ram(pid, mem=mem, regions=[size])
        mappings = [
            Mapping(HostVirtual(block.host_start), block.length_bytes, FileOffset(block.file_offset), mem)
            for block in ram
        ]
        async with linux.agent(fork) as agent:
            assert (await linux.run(agent, "nproc")).split() == ["2"]
            for number in (1, 2):
                await agent.spawn(ExecRequest(("sh", "-c", WORK.format(n=number)), timeout_s=300))
        lines = 0
        for capture in range(CAPTURES):
            async with linux.agent(fork) as agent:
                done = f"until [ $(wc -l < /run/log) -gt {lines + 2} ]; do sleep 0.02; done; wc -l < /run/log"
                lines = int(await linux.run(agent, "sh", "-c", done))
            await fork.vmm.pause()
            by_pagemap = changed_runs_by_pagemap(pid, mappings)
            try:
                assert changed_runs_by_scan(pid, mappings) == by_pagemap
            except UnavailableError:
                pass  # a kernel before 6.7
            runs = changed_pages(pid, ram, mem)
            assert pages_of(runs) == pages_of(by_pagemap)
            with buffer_pages(pid, runs) as buffered:
                assert buffered.changed_bytes == len(pages_of(runs)) * PAGE
                seen = digest_of_blocks(size, blocks_of(pid, ram))
                differ = differing(pid, ram, base)
                await fork.vmm.resume()
                deltas.append((place / f"delta-{capture}", seen))
                write_delta(deltas[-1][0], buffered, memory_bytes=size, base=base)
            assert differ <= pages_of(runs)
            # Nearly all of them do differ, and two files of random bytes are among them.
            assert len(differ) > max(MIB // PAGE, len(pages_of(runs)) // 2)
            compact(base, deltas[-1][0], place / "whole")
            assert digest(place / "whole") == seen
    assert len({seen for _, seen in deltas}) == CAPTURES
    for delta, seen in deltas:
        async with restored(linux, frozen, place / f"of-{delta.name}", resume=False) as child:
            pid = child.vmm.process.pid
            ram = locate_ram(pid, mem=mem, regions=[size])
            apply_delta(delta, pid, ram)
            assert digest_of_blocks(size, blocks_of(pid, ram)) == seen
    assert digest(base) == before
