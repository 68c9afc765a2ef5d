"""Leaving a Host ends whoever is still in a call, with an error; destructors and the interpreter's end wait
for nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.model import protocols
from tests.conftest import living_in
from tests.platform.library.programs import LOOPS_IN_TURN, run_program

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

LEFT = "UsageError: this Host was left"


@pytest.fixture(params=LOOPS_IN_TURN)
def loop(request: pytest.FixtureRequest) -> str:
    """The name of an event loop."""
    return str(request.param)


@pytest.fixture
async def box(warm_host: ramet.Host, warm: ramet.VM) -> AsyncIterator[ramet.VM]:
    """A guest that stays when the program that uses it leaves its Host. No command is left in it."""
    async with warm.fork(1, name="box") as (box,):
        await box.exec("sh", "-c", "echo up > /dev/console", check=True)  # its log has something in it
        yield box
        assert (await box.inspect()).processes == []


def test_every_call_of_other_threads_ends(box: protocols.VM, warm_home: Path, loop: str) -> None:
    said = run_program(
        """
        results, threads = {}, []
        before = threading.active_count()

        def begin(name, call):
            def work():
                results[name] = outcome(call)
            threads.append(threading.Thread(target=work))
            threads[-1].start()

        reading, writing = os.pipe()
        with ramet.sync.Host(home) as host:
            vm = host.get("box")
            log = vm.follow_logs()
            next(log)
            kept = vm.process("sleep", "1000")
            process = kept.__enter__()
            fed = vm.process("sleep", "1000", stdin=True)
            begin("exec", lambda: vm.exec("sleep", "1000"))
            begin("exec with a limit", lambda: vm.exec("sleep", "1000", timeout=900))
            begin("wait", vm.wait)
            begin("follow_logs", lambda: list(log))
            begin("process.wait", process.wait)
            begin("process.output", lambda: list(process.output()))
            begin("process.write", lambda: fed.__enter__().write(bytes(2**22)))
            begin("import", lambda: host.import_snapshot(f"/proc/self/fd/{reading}"))
            def body():
                with vm.process("sleep", "1000"):
                    left.wait()
            left = threading.Event()
            begin("in a block", body)
            while len(vm.inspect().processes) < 5:
                time.sleep(0.01)
        left.set()
        for thread in threads:
            thread.join()
        for name in sorted(results):
            print(f"{name}: {results[name]}")
        print("leaving the context:", outcome(kept.__exit__, None, None, None))
        print("the next call:", outcome(vm.info))
        print("the next process:", outcome(vm.process("true").__enter__))
        while threading.active_count() > before:  # the last of the loop's threads is about to end
            time.sleep(0.01)
        """,
        warm_home,
        loop,
    )
    assert [line for line in said if LEFT not in line] == []
    assert len(said) == 12


def test_every_call_of_other_tasks_ends(box: protocols.VM, warm_home: Path, loop: str) -> None:
    said = run_program(
        """
        async def main():
            tasks = {}

            def begin(name, work):
                tasks[name] = asyncio.create_task(awaited(work))

            async def all_of(items):
                return [item async for item in items]

            async def in_a_block(vm):
                async with vm.process("sleep", "1000"):
                    await asyncio.sleep(1000)

            reading, writing = os.pipe()
            async with ramet.Host(home) as host:
                vm = await host.get("box")
                blocks = asyncio.create_task(in_a_block(vm))
                begin("exec", vm.exec("sleep", "1000"))
                begin("wait", vm.wait())
                begin("follow_logs", all_of(vm.follow_logs()))
                begin("import", host.import_snapshot(f"/proc/self/fd/{reading}"))
                begin("in a block", in_a_block(vm))
                kept = vm.process("sleep", "1000")
                process = await kept.__aenter__()
                begin("process.wait", process.wait())
                begin("process.output", all_of(process.output()))
                while len((await vm.inspect()).processes) < 4:
                    await asyncio.sleep(0.01)
            for name, task in tasks.items():
                print(f"{name}: {await task}")
            print("a task of the caller's own:", await awaited(blocks))
            print("the next call:", await awaited(vm.info()))
            print("leaving the context:", await awaited(kept.__aexit__(None, None, None)))
            print("tasks:", len(asyncio.all_tasks()) - 1)

        asyncio.run(main())
        """,
        warm_home,
        loop,
    )
    *calls, leaving, tasks = said
    # The task that leaves the Host isn't cancelled in a context of its own; the context's command has ended.
    assert (leaving, tasks) == ("leaving the context: returned False", "tasks: 0")
    assert [line for line in calls if LEFT not in line] == []
    assert len(calls) == 9


@pytest.mark.parametrize("source", ["warm", pytest.param("snapshot", marks=pytest.mark.deep), "box"])
async def test_a_fork_that_is_under_way_leaves_nothing(
    box: protocols.VM, warm: protocols.VM, warm_home: Path, loop: str, source: str
) -> None:
    taken = await box.snapshot("here")
    try:
        said = run_program(
            f"""
            with ramet.sync.Host(home) as host:
                source = host.snapshot("box/here") if {source!r} == "snapshot" else host.get({source!r})
                results = []
                forking = threading.Thread(target=lambda: results.append(outcome(source.fork, 12)))
                forking.start()
                while not [fork for fork in host.list(everything=True) if fork.name not in ("warm", "box")]:
                    time.sleep(0.001)
            forking.join()
            print(results[0])
            """,
            warm_home,
            loop,
        )
        assert LEFT in said[0]
        async with ramet.Host(warm_home) as host:
            assert {instance.name for instance in await host.list(everything=True)} == {"warm", "box"}
        assert (await box.exec("true")).ok
        assert len(living_in(warm_home)) == 1
    finally:
        await taken.remove()


async def test_what_is_kept_in_variables_waits_for_nothing(
    box: protocols.VM, warm_home: Path, loop: str
) -> None:
    """The interpreter ends; so do destructors, in whatever thread and at whatever time they run."""
    said = run_program(
        """
        import gc
        host = ramet.sync.Host(home).__enter__()
        vm = host.get("box")
        log = vm.follow_logs()
        next(log)
        forgotten = vm.process("sleep", "1000")
        forgotten.__enter__()
        def forget():  # in the loop's own thread, where waiting for the loop would be for ever
            global log, forgotten
            del log, forgotten
            gc.collect()
            over.set()
        over = threading.Event()
        vm._portal.soon(forget)
        print(over.wait(30))
        while vm.inspect().processes:  # a forgotten command is ended
            time.sleep(0.01)
        log = vm.follow_logs()
        next(log)
        process = vm.process("cat", stdin=True)
        output = process.__enter__().output()
        threading.Thread(target=lambda: vm.exec("sleep", "1000"), daemon=True).start()
        threading.Thread(target=vm.wait, daemon=True).start()
        while len(vm.inspect().processes) < 2:
            time.sleep(0.01)
        print("end")
        """,
        warm_home,
        loop,
    )
    assert said == ["True", "end"]
    await box.exec("killall", "sleep", "cat")  # nobody was there any more who could have ended them
    while (await box.inspect()).processes:
        await anyio.sleep(0.01)


async def test_ctrl_c_ends_a_call_and_the_host_goes_on(box: protocols.VM, warm_home: Path, loop: str) -> None:
    said = run_program(
        """
        import signal
        with ramet.sync.Host(home) as host:
            vm = host.get("box")
            log = vm.follow_logs()
            next(log)
            with vm.process("sleep", "1000") as process:
                output = process.output()
                calls = {
                    "exec": lambda: vm.exec("sleep", "1000"),
                    "wait": vm.wait,
                    "follow_logs": lambda: list(log),
                    "process.wait": process.wait,
                    "process.output": lambda: next(output),
                    "fork": lambda: host.get("warm").fork(30),
                }
                there = os.path.join(home, "instances")
                before = len(os.listdir(there))

                def interrupt(name):
                    if name == "fork":  # in the middle of it, however fast it is
                        while len(os.listdir(there)) == before:
                            time.sleep(0.001)
                    else:  # these end by nothing else
                        time.sleep(0.15)
                    os.kill(os.getpid(), signal.SIGINT)

                for name, call in calls.items():
                    thread = threading.Thread(target=interrupt, args=(name,))
                    thread.start()
                    print(name, outcome(call))
                    thread.join()
                print(vm.exec("echo", "on").text.strip(), len(vm.inspect().processes))
            print([instance.name for instance in host.list(everything=True)])
            threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            try:
                vm.exec("sleep", "1000")
            except KeyboardInterrupt:
                sys.exit(3)  # through the block
        """,
        warm_home,
        loop,
        exit_code=3,
    )
    assert [line for line in said[:6] if not line.endswith("KeyboardInterrupt: ")] == []
    assert said[6:] == ["on 1", "['warm', 'box']"]


@pytest.mark.parametrize(
    "call", ["host.get('warm').fork(3)", pytest.param("host.run()", marks=pytest.mark.deep)]
)
def test_what_was_made_for_an_interrupted_caller_is_removed(
    warm_home: Path, warm: protocols.VM, call: str
) -> None:
    """Ctrl-C, when it is too late to cancel the call: nobody will ever have what it returns."""
    said = run_program(
        f"""
        import signal
        from ramet.model.forks import ForkCall

        def late(work):
            async def finished_at_last(*arguments, **options):
                made = await work(*arguments, **options)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.3)  # the loop gets no word of it before it is done
                return made
            return finished_at_last

        ForkCall._run, ramet.Host.run = late(ForkCall._run), late(ramet.Host.run)
        with ramet.sync.Host(home) as host:
            print(outcome(lambda: {call}))
            print([instance.name for instance in host.list(everything=True)])
        """,
        warm_home,
    )
    assert said == ["KeyboardInterrupt: ", "['warm']"]


@pytest.mark.parametrize(
    "by",
    [
        *(pytest.param(by, marks=pytest.mark.deep) for by in ("asyncio.wait_for", "anyio.move_on_after")),
        "Task.cancel",
    ],
)
async def test_a_host_is_left_whole_by_who_is_cancelled(
    warm: protocols.VM, warm_home: Path, loop: str, by: str
) -> None:
    """Again and again, in the middle of leaving, too: everything is done when the block's end is passed."""
    said = run_program(
        f"""
        import anyio
        by = {by!r}
        """
        """
        began = []
        async def job():
            async with ramet.Host(home) as host:
                forks = await (await host.get("warm")).fork(3)
                began.append(forks)
                await forks[0].exec("sleep", "1000")

        async def main():
            if by == "anyio.move_on_after":
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(job)
                        while not began:
                            await asyncio.sleep(0.01)
                        scope.cancel()
            elif by == "Task.cancel":
                task = asyncio.create_task(job())
                while not began:
                    await asyncio.sleep(0.01)
                while not task.done():
                    task.cancel()
                    await asyncio.sleep(0.005)
                print(task.cancelled())
            else:
                task = asyncio.create_task(job())
                while not began:
                    await asyncio.sleep(0.01)
                print(await awaited(asyncio.wait_for(task, 0.1)))
            print(len(asyncio.all_tasks()))
            async with ramet.Host(home) as host:
                print([instance.name for instance in await host.list(everything=True)])

        asyncio.run(main())
        """,
        warm_home,
        loop,
    )
    assert said[-2:] == ["1", "['warm']"]
    assert said[:-2] in ([], ["True"], ["TimeoutError: "])
