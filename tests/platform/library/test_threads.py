"""Threads: one Host of many, a Host opened in any of them, an event loop in each."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.model import protocols
from tests.platform.library.programs import LOOPS_IN_TURN, run_program

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


@pytest.fixture(params=LOOPS_IN_TURN)
def loop(request: pytest.FixtureRequest) -> str:
    """The name of an event loop."""
    return str(request.param)


async def test_a_host_of_many_threads(warm: protocols.VM, warm_home: Path, loop: str) -> None:
    said = run_program(
        """
        with ramet.sync.Host(home) as host:
            base = host.get("warm")
            names = []
            def work(number):
                with base.fork(1, name=f"t-{number}") as forks:
                    for _ in range(3):
                        names.append(forks[0].exec("hostname").text.strip())
                    host.list()
                    forks[0].spawn("echo", "up")
                    next(forks[0].follow_logs())
            threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            print(sorted(names))
            print([instance.name for instance in host.list()])
        """,
        warm_home,
        loop,
    )
    assert said == [str([f"t-{number}" for number in range(6) for _ in range(3)]), "['warm']"]


async def test_a_host_opened_in_a_thread(warm: protocols.VM, warm_home: Path, loop: str) -> None:
    """Signals are the main thread's business: nothing here wants to have any. Left by another thread."""
    said = run_program(
        """
        import signal
        def handlers():
            return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
        before, hosts = handlers(), []
        def work():
            host = ramet.sync.Host(home).__enter__()
            hosts.append(host)
            print(host.get("warm").fork(1, name="one")[0].exec("hostname").text.strip())
        def asynchronous():
            async def main():
                async with ramet.Host(home) as host:
                    async with (await host.get("warm")).fork(1, name="two") as forks:
                        print((await forks[0].exec("hostname")).text.strip())
            asyncio.run(main())
        for target in (work, asynchronous):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        print([instance.name for instance in hosts[0].list()])
        hosts[0].__exit__(None, None, None)
        print(handlers() == before)
        """,
        warm_home,
        loop,
    )
    assert said == ["one", "two", "['warm', 'one']", "True"]


async def test_two_event_loops_at_once(warm: protocols.VM, warm_home: Path, loop: str) -> None:
    """Each with a Host on one home. A handle of one isn't for the other."""
    said = run_program(
        """
        handles, both = [], threading.Barrier(2)
        async def main(number):
            async with ramet.Host(home) as host:
                async with (await host.get("warm")).fork(2, name=f"loop-{number}") as forks:
                    handles.append(forks[0])
                    both.wait()
                    other = [handle for handle in handles if handle is not forks[0]][0]
                    texts = [result.text.strip() for result in await forks.exec("hostname")]
                    refused = await awaited(other.exec("true"))
                    both.wait()  # neither Host is left before the other one's handle was tried
                    return texts, refused
        results = {}
        def work(number):
            results[number] = asyncio.run(main(number))
        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        for number in (0, 1):
            print(*results[number], sep="; ")
        """,
        warm_home,
        loop,
    )
    for number, line in enumerate(said):
        assert line.startswith(f"['loop-{number}-1', 'loop-{number}-2']; UsageError: this Host was opened in")
    assert len(said) == 2


async def test_one_event_loop_after_another(warm: protocols.VM, warm_home: Path, loop: str) -> None:
    """Nothing that belongs to a loop outlives it: no descriptor, no thread; the next one works."""
    said = run_program(
        """
        import gc
        async def main(number):
            async with ramet.Host(home) as host:
                async with (await host.get("warm")).fork(1) as forks:
                    return (await forks[0].exec("echo", str(number))).text.strip()
        open_files = []
        for number in range(5):
            print(asyncio.run(main(number)))
            with ramet.sync.Host(home) as host:
                host.list()
            gc.collect()
            open_files.append(len(os.listdir("/proc/self/fd")))
        print(open_files[-1] - open_files[1], threading.active_count())
        """,
        warm_home,
        loop,
    )
    assert said == ["0", "1", "2", "3", "4", "0 1"]


async def test_a_host_that_its_loop_never_left(warm: protocols.VM, warm_home: Path, loop: str) -> None:
    """`asyncio.run` ends all the same. The Host can be left from the next loop, and only left."""
    said = run_program(
        """
        async def main():
            host = await ramet.Host(home).__aenter__()
            vm = (await (await host.get("warm")).fork(1, name="left"))[0]
            await vm.spawn("echo", "up")
            log = vm.follow_logs()
            await anext(log)
            waiting = asyncio.create_task(vm.wait())
            await asyncio.sleep(0)
            return host, vm
        host, vm = asyncio.run(main())
        print("ended")
        async def later():
            print(await awaited(vm.info()))
            await host.__aexit__(None, None, None)
        asyncio.run(later())
        """,
        warm_home,
        loop,
    )
    assert said[0] == "ended"
    assert said[1].startswith("UsageError: this Host was opened in another event loop")


async def test_a_host_is_left_by_another_task(warm: protocols.VM, warm_home: Path, loop: str) -> None:
    """As fixtures of test frameworks and cells of notebooks do."""
    said = run_program(
        """
        async def main():
            host = ramet.Host(home)
            await asyncio.create_task(host.__aenter__())
            vm = (await (await host.get("warm")).fork(1, name="f"))[0]
            waiting = asyncio.create_task(awaited(vm.wait()))
            await asyncio.sleep(0)
            print(await awaited(host.__aenter__()))
            await asyncio.create_task(host.__aexit__(None, None, None))
            print(await waiting)
            print(await awaited(host.__aexit__(None, None, None)))
        asyncio.run(main())
        """,
        warm_home,
        loop,
    )
    assert [line.partition(" (")[0] for line in said] == [
        "UsageError: this Host is open already",
        "UsageError: this Host was left",
        "UsageError: this Host isn't open",
    ]
