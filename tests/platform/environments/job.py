"""The job that every environment has to do, as a program of its own: `python job.py HOME PREFIX`.

Run, exec, standby, restore, snapshot, fork of the snapshot, template, fork of the template, remove: through
`ramet.sync`, in one process. `--by` names another way: an event loop, threads, children. Prints one JSON
object with what each step took in seconds. What a step gives is checked, so the exit code says whether the
job was done. It needs nothing but ramet, because it is copied to where the tests aren't.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

import ramet
import ramet.sync

STATE = "hot"


class Steps:
    """What was done, and how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block, and say which one it was when it fails."""
        began = time.monotonic()
        print(f"job: {name}", file=sys.stderr, flush=True)
        yield
        self.seconds[name] = round(time.monotonic() - began, 3)


def expect(what: str, got: object, wanted: object) -> None:
    """End the job unless a step gave what it should; `assert` would be gone under `python -O`."""
    if got != wanted:
        raise SystemExit(f"job: {what}: {got!r}, not {wanted!r}")


def job(home: str, prefix: str) -> dict[str, float]:
    """Do the job in `home`, with names that begin with `prefix`; what it made is gone afterwards."""
    steps = Steps()
    with ramet.sync.Host(home) as host:
        with steps.step("run"):
            vm = host.run("builtin", name=f"{prefix}source", memory="128M")
        with steps.step("exec"):
            vm.exec("sh", "-c", f"echo {STATE} > /run/state", check=True)
        with steps.step("standby"):
            vm.standby()
        with steps.step("restore"):
            vm.restore()
        with steps.step("snapshot"):
            snapshot = vm.snapshot(name="kept")
        with steps.step("fork of the snapshot"), snapshot.fork(2, name=f"{prefix}early") as early:
            check_forks([fork.exec("cat", "/run/state").text.strip() for fork in early])
        with steps.step("template"):
            base = vm.template()
        with steps.step("fork of the template"), base.fork(2, name=f"{prefix}late") as late:
            check_forks([fork.exec("cat", "/run/state").text.strip() for fork in late])
            hostnames = {fork.exec("hostname").text.strip() for fork in late}
            expect("hostnames of two forks", len(hostnames), 2)
        with steps.step("rm"):
            snapshot.remove()
            base.remove(force=True)
            left = [
                instance.name for instance in host.list(everything=True) if instance.name.startswith(prefix)
            ]
            expect("what is left", left, [])
    return steps.seconds


def check_forks(states: list[str]) -> None:
    """Both forks have what their source had in memory."""
    expect("the state of two forks", states, [STATE, STATE])


async def async_job(home: str, prefix: str) -> dict[str, float]:
    """As `job`, on the event loop that runs."""
    steps = Steps()
    async with ramet.Host(home) as host:
        with steps.step("run"):
            vm = await host.run("builtin", name=f"{prefix}source", memory="128M")
        with steps.step("exec"):
            await vm.exec("sh", "-c", f"echo {STATE} > /run/state", check=True)
        with steps.step("standby"):
            await vm.standby()
        with steps.step("restore"):
            await vm.restore()
        with steps.step("snapshot"):
            snapshot = await vm.snapshot(name="kept")
        with steps.step("fork of the running one"):
            async with await vm.fork(2, name=f"{prefix}branch") as branches:
                found = [await vm.exec("cat", "/run/state") for vm in branches]
                check_forks([result.text.strip() for result in found])
        with steps.step("rewind"):
            await vm.rewind("kept")
        with steps.step("template"):
            base = await vm.template()
        with steps.step("fork of the template"):
            async with base.fork(2, name=f"{prefix}late") as late:
                found = [await fork.exec("cat", "/run/state") for fork in late]
                check_forks([result.text.strip() for result in found])
        with steps.step("rm"):
            await snapshot.remove()
            await base.remove(force=True)
    return steps.seconds


def on_asyncio(home: str, prefix: str) -> dict[str, float]:
    """On asyncio's own event loop."""
    with asyncio.Runner() as runner:
        return runner.run(async_job(home, prefix))


def on_uvloop(home: str, prefix: str) -> dict[str, float]:
    """On uvloop's, which Ray and many servers turn on."""
    with asyncio.Runner(loop_factory=importlib.import_module("uvloop").new_event_loop) as runner:
        return runner.run(async_job(home, prefix))


def in_threads(home: str, prefix: str) -> dict[str, float]:
    """Twice at once, in two threads, neither of them the main one."""
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(job, [home, home], [f"{prefix}a-", f"{prefix}b-"]))
    return both[0]


def in_children(home: str, prefix: str, start: str) -> dict[str, float]:
    """Twice at once, in the children of a process pool."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(start)) as pool:
        both = list(pool.map(job, [home, home], [f"{prefix}a-", f"{prefix}b-"]))
    return both[0]


def before_fork(home: str, prefix: str) -> dict[str, float]:
    """In a child of fork(2), whose parent has had a Host before."""
    with ramet.sync.Host(home) as host:
        host.list()
    if (child := os.fork()) == 0:
        job(home, prefix)
        os._exit(0)
    expect("how the child ended", os.waitpid(child, 0)[1], 0)
    return {}


def around_fork(home: str, prefix: str) -> dict[str, float]:
    """With a child of fork(2) that does the job, too, while its parent has a Host open and a guest in it."""
    with ramet.sync.Host(home) as host:
        guest = host.run("builtin", name="of-the-parent", memory="96M")
        if (child := os.fork()) == 0:
            try:
                host.list()
            except ramet.UsageError:
                job(home, prefix)
                os._exit(0)
            os._exit(1)  # the parent's Host is no use here, and has to say so
        expect("how the child ended", os.waitpid(child, 0)[1], 0)
        guest.exec("true", check=True)
    return {}


WAYS: dict[str, Callable[[str, str], dict[str, float]]] = {
    "plain": job,
    "asyncio": on_asyncio,
    "uvloop": on_uvloop,
    "threads": in_threads,
    "fork-before": before_fork,
    "fork-after": around_fork,
    **{
        f"multiprocessing-{start}": functools.partial(in_children, start=start)
        for start in ("fork", "spawn", "forkserver")
    },
}


def main(words: list[str]) -> None:
    """Carry out the words of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("home")
    parser.add_argument("prefix")
    parser.add_argument("--by", choices=WAYS, default="plain")
    asked = parser.parse_args(words)
    print(json.dumps(WAYS[asked.by](asked.home, asked.prefix)))


if __name__ == "__main__":
    main(sys.argv[1:])
