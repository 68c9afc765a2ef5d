"""fork(2) under a program that has a Host open: pre-forking servers, daemons, multiprocessing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.model import protocols
from tests.platform.library.programs import LOOPS_IN_TURN, run_program

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

# From Python 3.12 on os.fork() warns of threads, the open Host's among them.
QUIET = ["-W", "ignore:This process:DeprecationWarning"]
FORKED = "UsageError: this Host was opened by the process that this one was forked from"


@pytest.fixture(params=LOOPS_IN_TURN)
def loop(request: pytest.FixtureRequest) -> str:
    """The name of an event loop."""
    return str(request.param)


async def test_an_open_host_is_the_parents(warm: protocols.VM, warm_home: Path, loop: str) -> None:
    """Each call, property, iterator and context says so at once; nothing of the parent's is touched."""
    said = run_program(
        """
        with ramet.sync.Host(home) as host:
            with host.get("warm").fork(2) as forks:
                vm = forks[0]
                vm.spawn("echo", "up")
                log = vm.follow_logs()
                next(log)
                kept = vm.process("cat", stdin=True)
                process = kept.__enter__()
                snapshot = vm.snapshot("s")
                if (child := os.fork()) == 0:
                    calls = {
                        "host": [host.list, host.tree, host.stats, host.pool, host.snapshots, host.run,
                                 lambda: host.get("warm"), lambda: host.snapshot("s"), host.__enter__],
                        "vm": [vm.info, vm.inspect, vm.template, vm.fork, vm.fork_report, vm.pause, vm.wait,
                               vm.stop, vm.remove, vm.keep, vm.detach, vm.logs, lambda: vm.exec("true"),
                               lambda: vm.spawn("true"), vm.process("true").__enter__, vm.snapshot,
                               lambda: vm.directory, lambda: vm.receipt],
                        "log": [lambda: next(log), log.close, lambda: next(vm.follow_logs())],
                        "process": [process.wait, process.close_stdin, lambda: next(process.output()),
                                    lambda: process.write(b"x"), lambda: process.signal(9),
                                    lambda: kept.__exit__(None, None, None)],
                        "snapshot": [snapshot.info, snapshot.remove, snapshot.verify, snapshot.fork,
                                     lambda: snapshot.directory],
                        "forks": [lambda: forks.exec("true"), lambda: forks.__exit__(None, None, None)],
                        "leaving": [lambda: host.__exit__(None, None, None)],
                    }
                    for kind, of_it in calls.items():
                        for number, call in enumerate(of_it):
                            print(kind, number, outcome(call), flush=True)
                    sys.exit(3)  # through both blocks, with all handles in variables
                print("child:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
                print(forks.exec("echo", "alive")[1].text.strip(), vm.exec("echo", "too").text.strip())
                process.write(b"written")
                process.close_stdin()
                print(b"".join(chunk.data for chunk in process.output()).decode(), process.wait().exit_code)
                kept.__exit__(None, None, None)
                snapshot.remove()
        print("left", flush=True)
        """,
        warm_home,
        loop,
        options=QUIET,
    )
    refused, rest = said[:-4], said[-4:]
    assert [line for line in refused if FORKED not in line] == []
    assert len(refused) == 44
    assert rest == ["child: 3", "alive too", "written 0", "left"]


async def test_a_child_opens_a_host_of_its_own(warm: protocols.VM, warm_home: Path, loop: str) -> None:
    """Also when the parent's is open, and in the middle of calls of other threads."""
    said = run_program(
        """
        with ramet.sync.Host(home) as host:
            vm = host.get("warm").fork(1, name="parents")[0]
            threads = [
                threading.Thread(target=lambda: outcome(vm.exec, "sleep", "1000"), daemon=True),
                threading.Thread(target=lambda: [host.list() for _ in range(100)], daemon=True),
            ]
            for thread in threads:
                thread.start()
            children = []
            for number in range(3):
                if (child := os.fork()) == 0:
                    with ramet.sync.Host(home) as own:
                        fork = own.get("warm").fork(1, name=f"childs-{number}")[0]
                        print(fork.exec("hostname").text.strip(), flush=True)
                    os._exit(0)
                children.append(child)
            print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)
            print(vm.exec("hostname").text.strip(), [instance.name for instance in host.list()], flush=True)
        """,
        warm_home,
        loop,
        options=QUIET,
    )
    assert sorted(said[:3]) == ["childs-0", "childs-1", "childs-2"]
    assert said[3:] == ["[0, 0, 0]", "parents ['warm', 'parents']"]


def test_no_lock_of_a_module_is_inherited(home: Path) -> None:
    """Whatever thread held one when its process forked: it isn't there in the child to release it."""
    said = run_program(
        """
        import importlib, pkgutil, _thread
        for found in pkgutil.walk_packages(ramet.__path__, "ramet."):
            if not found.name.endswith(("__main__", "_resumer", ".launching", "_probe", "_watcher")):
                importlib.import_module(found.name)
        def locks():
            for name, module in sorted(sys.modules.items()):
                if name.startswith("ramet"):
                    for attribute, value in vars(module).items():
                        if isinstance(value, _thread.LockType | _thread.RLock):
                            yield f"{name}.{attribute}", value
        held = [name for name, lock in locks() if lock.acquire()]
        print(held)
        if os.fork() == 0:
            print([name for name, lock in locks() if not lock.acquire(blocking=False)], flush=True)
            os._exit(0)
        os.wait()
        """,
        home,
    )
    held, inherited = said
    assert "ramet.system.copying._copying" in held
    assert inherited == "[]"


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.deep)])
async def test_multiprocessing(warm: protocols.VM, warm_home: Path, tmp_path: Path, method: str) -> None:
    """A pool of workers, each with a Host, from a program that has one."""
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, sys\n"
        "import ramet.sync\n"
        "def work(number):\n"
        "    with ramet.sync.Host(sys.argv[1]) as host:\n"
        "        with host.get('warm').fork(1, name=f'worker-{number}') as forks:\n"
        "            return forks[0].exec('hostname').text.strip()\n"
        "if __name__ == '__main__':\n"
        "    with ramet.sync.Host(sys.argv[1]) as host:\n"
        "        host.list()\n"
        f"        with multiprocessing.get_context({method!r}).Pool(2) as pool:\n"
        "            print(pool.map(work, range(3)))\n"
        "        print([instance.name for instance in host.list()])\n"
    )
    said = run_program(
        f"""
        import subprocess
        words = [sys.executable, *{QUIET!r}, {str(program)!r}, home]
        done = subprocess.run(words, capture_output=True, text=True)
        print(done.stdout + done.stderr, end="")
        """,
        warm_home,
    )
    assert said == ["['worker-0', 'worker-1', 'worker-2']", "['warm']"]


async def test_an_async_host_is_the_parents(warm: protocols.VM, warm_home: Path, loop: str) -> None:
    said = run_program(
        """
        async def main():
            async with ramet.Host(home) as host:
                vm = await host.get("warm")
                if (child := os.fork()) == 0:
                    try:
                        in_a_child(host, vm)
                    finally:
                        os._exit(4)
                print("child:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
                print((await vm.info()).name, flush=True)

        def in_a_child(host, vm):
            async def calls():
                for call in (host.list, vm.info, vm.fork, lambda: host.__aexit__(None, None, None)):
                    print(await awaited(call()), flush=True)
                async with ramet.Host(home) as own:
                    print([instance.name for instance in await own.list()], flush=True)
            thread = threading.Thread(target=lambda: asyncio.run(calls()))
            thread.start()
            thread.join()

        asyncio.run(main())
        """,
        warm_home,
        loop,
        options=QUIET,
    )
    assert [line for line in said[:4] if FORKED not in line] == []
    assert said[4:] == ["['warm']", "child: 4", "warm"]
