"""One operation of ramet in a process that kills itself at a chosen point.

    python -m tests.endurance.crash.injector HOME OPERATION POINT

The points are found by running: every call that changes what others can see (fsync, rename, link, unlink,
mkdir, rmdir, truncate, chmod, the database's BEGIN and COMMIT, a spawn, a command to the VMM) counts twice,
just before and just after the real call. An operation that comes to its end, as with POINT 0, prints the
points that it passed, one a line.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

import ramet
from ramet.engine.boot_snapshots import cache
from ramet.paths import Home

CALLS = (
    "fsync",
    "fdatasync",
    "rename",
    "replace",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "truncate",
    "ftruncate",
    "chmod",
)


class Points:
    """Counts points and kills the process at one of them."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.seen: list[str] = []

    def pass_by(self, what: str) -> None:
        """Called by more than one thread: the second of two that come at once must see it, too."""
        self.seen.append(what)
        if 0 < self.fatal <= len(self.seen):
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self.pass_by(f"before {what}")
            result = call(*arguments, **keywords)
            self.pass_by(f"after {what}")
            return result

        return wrapped

    def install(self) -> None:
        """Wrap the real calls.

        Must happen before the operation, may happen after imports: all go through the modules.
        """
        for name in CALLS:
            setattr(os, name, self.around(name, getattr(os, name)))
        points = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                if sql.startswith(("BEGIN", "COMMIT")):
                    return points.around(sql.split()[0], super().execute)(sql, *parameters)  # type: ignore[no-any-return]
                return super().execute(sql, *parameters)

        connect = sqlite3.connect
        sqlite3.connect = lambda *a, **k: connect(*a, **{**k, "factory": Connection})
        subprocess.Popen = self._popen(subprocess.Popen)  # type: ignore[misc, assignment]
        from ramet.drivers.qemu.monitor import Monitor

        execute = Monitor.execute

        async def counted(monitor: Monitor, command: str, **arguments: object) -> Any:
            points.pass_by(f"before qmp {command}")
            result = await execute(monitor, command, **arguments)
            points.pass_by(f"after qmp {command}")
            return result

        Monitor.execute = counted  # type: ignore[method-assign, assignment]
        from ramet.drivers.http_api import HttpApi

        request = HttpApi.request

        async def counted_request(
            api: HttpApi, method: str, path: str, *arguments: Any, **keywords: Any
        ) -> Any:
            points.pass_by(f"before {method} {path}")
            result = await request(api, method, path, *arguments, **keywords)
            points.pass_by(f"after {method} {path}")
            return result

        HttpApi.request = counted_request  # type: ignore[method-assign, assignment]

    def _popen(self, popen: type[subprocess.Popen[bytes]]) -> type[subprocess.Popen[bytes]]:
        points = self

        class Popen(popen):  # type: ignore[valid-type, misc]
            def __init__(self, *arguments: Any, **keywords: Any) -> None:
                points.pass_by("before spawn")
                super().__init__(*arguments, **keywords)
                points.pass_by("after spawn")

        return Popen


async def run(host: ramet.Host) -> None:
    """Of the image and the driver of `base`."""
    base = await (await host.get("base")).info()
    vm = await host.run(base.image, driver=base.driver, name="x", memory=base.memory_bytes)
    await vm.detach()


async def template(host: ramet.Host) -> None:
    await (await host.get("x")).template()


async def fork(host: ramet.Host) -> None:
    for vm in await (await host.get("base")).fork(2, name="f"):
        await vm.detach()


async def detached_fork(host: ramet.Host) -> None:
    """As `ramet fork` makes them."""
    await (await host.get("base")).fork_report(2, name="f", detach=True)


async def pool(host: ramet.Host) -> None:
    """Two warm VMMs are made, and ended."""
    async with ramet.Host(host.home, warm=2) as warm_host:
        await _filled(warm_host)


async def pooled_fork(host: ramet.Host) -> None:
    """By a Host that isn't the one that keeps them."""
    async with ramet.Host(host.home, warm=2) as warm_host:
        await _filled(warm_host)
        for vm in await (await host.get("base")).fork(2, name="f"):
            assert vm.receipt.warm == "loaded"
            await vm.detach()


async def _filled(warm_host: ramet.Host) -> None:
    context = warm_host._context
    assert context is not None
    assert context.controller is not None
    context.controller.report_demand(f"instances/{(await warm_host.get('base')).id}", 2)
    with anyio.fail_after(60):
        while sum(entry.warm == "loaded" for entry in (await warm_host.pool(wait=60)).entries) < 2:
            await anyio.sleep(0.01)


async def first_run(host: ramet.Host) -> None:
    """It boots, is captured, and is a fork of its boot snapshot then."""
    os.environ["RAMET_BOOT_SNAPSHOTS"] = "10G"
    await run(host)


async def later_run(host: ramet.Host) -> None:
    """A fork of a boot snapshot."""
    await first_run(host)


async def prune_boot(host: ramet.Host) -> None:
    """A boot snapshot goes."""
    for entry in cache.entries(Home(host.home)):
        await cache.remove(host._opened, entry.key)


async def rm(host: ramet.Host) -> None:
    await (await host.get("x")).remove(force=True)


async def stop(host: ramet.Host) -> None:
    await (await host.get("x")).stop()


async def start(host: ramet.Host) -> None:
    await (await host.get("x")).start()


async def pause(host: ramet.Host) -> None:
    await (await host.get("x")).pause()
    await (await host.get("x")).resume()


async def branch(host: ramet.Host) -> None:
    for vm in await (await host.get("x")).fork(1, name="f"):
        await vm.detach()


async def snapshot(host: ramet.Host) -> None:
    await (await host.get("x")).snapshot("t")


async def snapshot_rm(host: ramet.Host) -> None:
    await (await host.snapshot("x/s")).remove()


async def standby(host: ramet.Host) -> None:
    await (await host.get("x")).standby()


async def restore(host: ramet.Host) -> None:
    await (await host.get("x")).restore()


async def rewind(host: ramet.Host) -> None:
    await (await host.get("x")).rewind("s")


async def compress(host: ramet.Host) -> None:
    await (await host.snapshot("x/s")).compress(level=1)


async def decompress(host: ramet.Host) -> None:
    await (await host.snapshot("x/s")).decompress()


async def compressed_fork(host: ramet.Host) -> None:
    """The first of a compressed snapshot."""
    for vm in await (await host.snapshot("x/s")).fork(1, name="f"):
        await vm.detach()


async def compressed_restore(host: ramet.Host) -> None:
    await (await host.get("x")).restore()


async def resize(host: ramet.Host) -> None:
    await (await host.get("x")).resize_disk("disk", "64M")


async def resize_stopped(host: ramet.Host) -> None:
    await (await host.get("x")).resize_disk("disk", "64M")


async def come(host: ramet.Host) -> None:
    """An import."""
    await host.import_snapshot(host.home / "x.ramet", name="came")


async def reconcile(host: ramet.Host) -> None:
    """Opening the home is the operation."""


OPERATIONS: dict[str, Callable[[ramet.Host], Awaitable[None]]] = {
    operation.__name__: operation
    for operation in (
        *(
            run,
            first_run,
            later_run,
            prune_boot,
            template,
            fork,
            detached_fork,
            rm,
            stop,
            start,
            pause,
            reconcile,
        ),
        *(pool, pooled_fork, branch, snapshot, snapshot_rm, standby, restore, rewind, come),
        *(compress, decompress, compressed_fork, compressed_restore, resize, resize_stopped),
    )
}


async def carry_out(home: str, operation: str, point: int) -> None:
    points = Points(point)
    # Imported now, so that the points are the operation's and not Python's.
    import ramet.api.host

    points.install()
    async with ramet.Host(home) as host:
        await OPERATIONS[operation](host)
    print("\n".join(points.seen))


def main() -> int:
    """`python -m tests.endurance.crash.injector HOME OPERATION POINT`."""
    anyio.run(carry_out, sys.argv[1], sys.argv[2], int(sys.argv[3]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
