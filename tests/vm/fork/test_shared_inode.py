"""The seed's rule: nothing opens a shared mem-file for writing, and nothing writes it.

Every system call of ramet and of its VMMs that could is traced through all of a family's life, and the file
is the same afterwards. One exception: a QEMU before 8.2 opens the mem-file for reading and writing, once,
when it starts, and maps it privately. It does nothing else with that descriptor.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import ramet
from ramet.memory.integrity import digest
from ramet.paths import MEM_FILE
from tests.side_by_side import tell
from tests.support.guests import Guest
from tests.vm.conftest import host_and_snapshots

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)]

_OPENING = "open,openat,openat2,creat,truncate"
_CHANGING = (
    "ftruncate,fallocate,pwrite64,pwritev,pwritev2,write,writev,copy_file_range,sendfile,splice,ioctl,mmap"
)
_LIFE = """
import anyio, sys
import ramet

async def main():
    async with ramet.Host(sys.argv[1]) as host:
        shared = await host.get("shared")
        one, other = await shared.fork(2)
        (branch,) = await one.fork(1)
        snapshot = await one.snapshot("kept")
        for _ in range(2):
            await one.standby()
            await one.restore()
        await one.rewind("kept")
        await branch.standby()
        (grandchild,) = await branch.fork(1)
        await grandchild.template()
        await branch.restore()
        await (await snapshot.fork(1))[0].remove(force=True)
        assert (await other.exec("true")).ok

anyio.run(main)
"""
_OPENED = "import os, sys; os.close(os.open(sys.argv[1] + '/' + sys.argv[2], os.O_RDWR))"
_TRUNCATED = "import os, sys; p = sys.argv[1] + '/' + sys.argv[2]; os.truncate(p, os.path.getsize(p))"
_WRITTEN = """
import mmap, os, sys
path = sys.argv[1] + "/" + sys.argv[2]
fd = os.open(path, os.O_RDWR)
os.pwrite(fd, os.pread(fd, 1, 0), 0)
mmap.mmap(fd, 4096, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE).close()
"""

_CALL = re.compile(r"^\d+ +(\w+)\((.*)$")
_WRITABLE = re.compile(r"\bO_(WRONLY|RDWR|TRUNC)\b")


class Trace:
    """What a program and all its descendants did with files of one name."""

    def __init__(self, home: Path, program: str, *words: str) -> None:
        strace = shutil.which("strace")
        if strace is None:
            pytest.skip("there is no strace here (package strace)")
        out = home.parent / f"{home.name}.strace"
        done = subprocess.run(
            [
                *(strace, "-f", "--seccomp-bpf", "-qq", "-y", "-s", "0", "-o", out),
                *("-e", f"trace={_OPENING},{_CHANGING}", "-e", "signal=none"),
                *(sys.executable, "-c", program, str(home), *words),
            ],
            capture_output=True,
            text=True,
            timeout=200,
        )
        lines = out.read_text(errors="replace").splitlines()
        out.unlink()
        if "ptrace" in done.stderr and not lines:
            pytest.skip(f"nothing can be traced here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        self.opened: Counter[str] = Counter()
        """How often it was opened for writing, by program: a VMM knows it by its bare name."""
        self.read_only = 0
        self.wrote: list[str] = []
        """Calls that write a file of that name, or map it so that it can be."""
        for line in lines:
            self._take(line)

    def _take(self, line: str) -> None:
        found = _CALL.match(line)
        if found is None:
            return
        call, rest = found.groups()
        if call in {"open", "openat", "openat2", "creat", "truncate"}:
            quoted = re.search(r'"([^"]*)"', rest)
            # With -s 0 nothing of data is shown, but paths are.
            path = quoted[1] if quoted else ""
            resolved = re.search(r"= \d+<([^>]*)>", rest)
            name = Path(resolved[1] if resolved else path).name
            if name != MEM_FILE:
                return
            if call in {"creat", "truncate"} or _WRITABLE.search(rest):
                self.opened["qemu" if path == MEM_FILE else "ramet"] += 1
            else:
                self.read_only += 1
            return
        descriptor = re.match(r"\d+<([^>]*)>", rest if call != "mmap" else _fifth(rest))
        if descriptor is None or Path(descriptor[1].removesuffix(" (deleted)")).name != MEM_FILE:
            return
        if call == "mmap" and ("MAP_PRIVATE" in rest or "PROT_WRITE" not in rest):
            return
        if call == "ioctl":
            return
        self.wrote.append(line)


def _fifth(arguments: str) -> str:
    pieces = arguments.split(", ")
    return pieces[4] if len(pieces) > 4 else ""


async def make_shared(guest: Guest, host: ramet.Host) -> ramet.VM:
    """A template, `shared`."""
    vm = await host.run(guest.image, name="shared", driver=guest.driver, memory="128M", disks=["16M"])
    await guest.write(vm, 0, 1)
    return await vm.template()


@pytest.mark.proves("I1")
async def test_nobody_opens_it_for_writing(guest: Guest, host: ramet.Host) -> None:
    template = await make_shared(guest, host)
    mem = template.directory / MEM_FILE
    before = (digest(mem), mem.stat().st_mtime_ns, mem.stat().st_blocks)
    trace = Trace(host.home, _LIFE)
    after = (digest(mem), mem.stat().st_mtime_ns, mem.stat().st_blocks)
    tell(
        f"{guest.driver}: its mem-file was opened {trace.read_only} times for reading, for writing"
        f" {dict(trace.opened) or 'never'}"
    )
    assert after == before
    assert trace.wrote == []
    assert trace.opened["ramet"] == 0
    if guest.driver == "firecracker":
        assert trace.opened.total() == 0
        assert trace.read_only > 0
    elif "not enforced" in (await template.fork(1))[0].receipt.memory.immutability:
        # Once for each VMM that was started: two forks, a branch, two restores, a rewind, a grandchild, a
        # restore, a fork of the snapshot.
        assert trace.opened["qemu"] == 9
    else:
        assert trace.opened["qemu"] == 0


async def test_the_trace_would_show_it(probe: Guest, host: ramet.Host) -> None:
    """Opened for writing on purpose, and by its name too."""
    template = await make_shared(probe, host)
    relative = str(template.directory.relative_to(host.home) / MEM_FILE)
    assert Trace(host.home, _OPENED, relative).opened["ramet"] == 1
    assert Trace(host.home, _TRUNCATED, relative).opened["ramet"] == 1
    written = Trace(host.home, _WRITTEN, relative)
    assert [re.sub(r"^\d+ +(\w+).*", r"\1", line) for line in written.wrote] == ["pwrite64", "mmap"]
