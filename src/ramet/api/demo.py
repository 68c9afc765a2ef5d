"""The demo, step by step: the commands in the guests, and the checks of their results.

64 MiB of random data stand for a state that took long to prepare. Every fork must find the data. No other
fork, and not the template's mem-file, may see what a fork writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

from ramet.errors import UsageError
from ramet.memory import integrity
from ramet.model.demo import DemoFork, DemoReport
from ramet.paths import MEM_FILE
from ramet.system import threads
from ramet.system.files import STAT_BLOCK_BYTES
from ramet.units import MIB, parse_size

if TYPE_CHECKING:
    from ramet.api.handles import VM
    from ramet.api.host import Host
    from ramet.model.exec_result import ExecResult
    from ramet.model.forks import Forks

Step = Callable[[str], AbstractContextManager[None]]

DATA_MIB = 64
OWN_MIB = 4
_SMALLEST_BYTES = 192 * MIB
# SHA-512 works on 64-bit words: of busybox's digests it is the quickest in an emulated guest.
_DIGEST = "sha512sum </tmp/data | cut -c 1-32"
_PREPARE = f"dd if=/dev/urandom of=/tmp/data bs=1M count={DATA_MIB} 2>/dev/null && {_DIGEST}"
_DIVERGE = (
    f"{_DIGEST} && "
    f"dd if=/dev/urandom of=/tmp/data bs=1M count={OWN_MIB} seek=8 conv=notrunc 2>/dev/null && {_DIGEST}"
)


def require_memory(memory: str) -> str:
    """Return `memory`. Raises `UsageError` when it is too small for the data."""
    if parse_size(memory) < _SMALLEST_BYTES:
        raise UsageError(
            f"{memory} is too little for {DATA_MIB} MiB of data", hint=f"at least {_SMALLEST_BYTES // MIB}M"
        )
    return memory


async def demonstrate(host: Host, *, count: int, memory: str, step: Step) -> DemoReport:
    """Run the demo. `step` is entered around each step, with the words for it."""
    began = time.perf_counter()
    with step("boot the built-in guest"):
        vm = await host.run("builtin", name="warm", memory=memory)
    with step(f"fill {DATA_MIB} MiB of its memory with random data"):
        original = (await vm.exec("sh", "-c", _PREPARE, check=True)).text.strip()
    with step("make it a template"):
        template = await vm.template()
    with step("take a digest of its mem-file"):
        before = await _digest(template)
    forking = time.perf_counter()
    with step(f"fork it into {count}"):
        # With return_exceptions the list holds an exception where a fork failed.
        forks = await template.fork(count, name="fork", return_exceptions=True)
    fork_ms = (time.perf_counter() - forking) * 1000
    living = [fork for fork in forks if not isinstance(fork, Exception)]
    with step("read the data in every fork, overwrite a part, read it again"):
        results = await _diverge(forks, living)
    with step("take the digest of the mem-file again"):
        after = await _digest(template)
        mem_file = (template.directory / MEM_FILE).stat()
        own = [(await vm.stats()).guest_private_bytes for vm in living]
    shown = [
        DemoFork(
            receipt=vm.receipt,
            inherited_digest=inherited,
            own_digest=changed,
            guest_private_bytes=private,
        )
        for vm, (inherited, changed), private in zip(living, results, own, strict=True)
    ]
    failed = [f"a fork failed: {fork}" for fork in cast("list[object]", forks) if isinstance(fork, Exception)]
    failed += _false(shown, original=original, inode=mem_file.st_ino)
    if before != after:
        failed.append("the template's mem-file has changed")
    allocated = mem_file.st_blocks * STAT_BLOCK_BYTES
    return DemoReport(
        forks=shown,
        failed_checks=failed,
        original_digest=original,
        template_digest=before,
        if_copied_bytes=len(shown) * allocated,
        in_fact_bytes=allocated + sum(own),
        fork_ms=round(fork_ms, 3),
        total_ms=round((time.perf_counter() - began) * 1000, 3),
    )


async def _digest(vm: VM) -> str:
    return await threads.run(integrity.digest, vm.directory / MEM_FILE)


async def _diverge(forks: Forks[VM], living: Sequence[VM]) -> list[tuple[str, str]]:
    """Return (digest of the inherited data, digest after overwriting a part) per living fork."""
    forks[:] = living
    results: list[Any] = await forks.exec("sh", "-c", _DIVERGE)
    return [_two_lines(result) for result in results]


def _two_lines(result: ExecResult | Exception) -> tuple[str, str]:
    if isinstance(result, Exception):
        raise result
    first, second = result.check().text.split()
    return first, second


def _false(forks: Sequence[DemoFork], *, original: str, inode: int) -> list[str]:
    """Return the checks that failed, in words."""
    wrong = []
    for fork in forks:
        memory = fork.receipt.memory
        if memory.mode != "shared" or memory.inode != inode:
            wrong.append(f"{fork.receipt.name} doesn't share the template's mem-file: {memory.reason}")
        if fork.inherited_digest != original:
            wrong.append(f"{fork.receipt.name} didn't find the data that it should have inherited")
    own = {fork.own_digest for fork in forks}
    if len(own | {original}) != len(forks) + 1:
        wrong.append("two guests have the same data after each has overwritten its own part")
    return wrong
