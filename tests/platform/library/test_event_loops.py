"""Event loops that aren't asyncio's own, and those that ramet doesn't run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.drivers.firecracker.driver import Firecracker
from ramet.errors import UnavailableError
from tests.platform.library.programs import LOOPS, LOOPS_IN_TURN, LOOPS_SHORTLY, run_program

NO_LOOP = "UsageError: ramet.Host needs an asyncio event loop"

JOB = """
import logging
logging.getLogger("asyncio").setLevel(logging.ERROR)
async def job(image):
    async with ramet.Host(home) as host:
        if image == "builtin":  # Linux takes seconds to boot
            vm, = await (await host.get("warm")).fork(1, name="job")
        else:
            vm = await host.run(image, name="job", driver="firecracker")
        print("begun", (await vm.inspect()).state)
        await vm.snapshot("early")
        async with vm.fork(2) as forks:
            print("branches", len(forks), [fork.receipt.memory.mode for fork in forks])
        await vm.pause()
        await vm.resume()
        await vm.standby()
        await vm.restore()
        await vm.rewind("early")
        print("rewound", (await vm.info()).generation)
        if image == "builtin":
            print("exec", (await vm.exec("cat", stdin="through")).text)
            async with vm.process("cat", stdin=True) as process:
                await process.write(bytes(2**15))
                await process.close_stdin()
                print("process", sum([len(chunk.data) async for chunk in process.output()]))
            await vm.exec("sh", "-c", "echo up > /dev/console")
            async for chunk in vm.follow_logs():
                print("logs", bool(chunk))
                break
        snapshot = await host.snapshot("early")
        exported = home + "/file"
        await snapshot.export(exported)
        await (await host.import_snapshot(exported, name="again")).remove()
        os.unlink(exported)
        print("verified", (await snapshot.verify()).ok)
        await snapshot.remove()
        base = await vm.template()
        async with base.fork(3) as forks:
            print("forks", len(forks))
        await vm.remove(force=True)
"""


@pytest.mark.vm
@pytest.mark.anyio
@pytest.mark.parametrize("loop", LOOPS_IN_TURN)
@pytest.mark.usefixtures("warm_host")
def test_a_whole_job(warm_home: Path, loop: str) -> None:
    # asyncio's debug mode says which callback took long, which on a busy machine any may.
    said = run_program(
        JOB + 'asyncio.run(job("builtin"))', warm_home, loop, options=["-X", "dev", "-W", "error"]
    )
    assert said == [
        "begun running",
        "branches 2 ['delta', 'delta']",
        "rewound 4",
        "exec through",
        "process 32768",
        "logs True",
        "verified True",
        "forks 3",
    ]


@pytest.mark.vm
@pytest.mark.parametrize("loop", LOOPS)
def test_a_whole_job_on_firecracker(home: Path, loop: str) -> None:
    try:
        Firecracker().program()
    except UnavailableError as error:
        pytest.skip(error.message)
    said = run_program(
        JOB
        + """
from ramet.errors import NotFoundError
try:
    asyncio.run(job("probe"))
except (ramet.UnavailableError, NotFoundError) as error:
    print("skip", error.message)
""",
        home,
        loop,
        options=["-X", "dev", "-W", "error"],
    )
    if said[-1].startswith("skip"):
        pytest.skip(said[-1])
    assert said == [
        "begun running",
        "branches 2 ['shared', 'shared']",
        "rewound 3",
        "verified True",
        "forks 3",
    ]


@pytest.mark.parametrize("sniffing", [pytest.param(True, marks=pytest.mark.slow), False])
def test_trio_is_refused_at_once(home: Path, sniffing: bool) -> None:
    """By one error, before anything is made; whether or not sniffio is there to tell who runs."""
    said = run_program(
        f"""
        import trio
        if not {sniffing}:
            sys.modules["sniffio"] = None
        place = os.path.join(home, "new")
        async def main():
            try:
                async with ramet.Host(place):
                    print("open")
            except ramet.RametError as error:
                print(f"{{type(error).__name__}}: {{error}}")
        trio.run(main)
        print(os.path.exists(place))
        def plain():
            with ramet.sync.Host(place) as host:
                return host.list()
        async def threaded():
            print(await trio.to_thread.run_sync(plain))
        trio.run(threaded)
        """,
        home,
    )
    assert said[0].startswith(NO_LOOP)
    assert "trio.to_thread.run_sync" in said[0]
    assert said[1:] == ["False", "[]"]


def test_trio_inside_asyncio_is_refused_too(home: Path) -> None:
    """trio as a guest of an asyncio loop: a loop runs, and isn't what runs this code."""
    said = run_program(
        """
        import trio
        async def guest():
            return await awaited(ramet.Host(home).__aenter__())
        async def main():
            done = asyncio.Event()
            outcomes = []
            def over(result):
                outcomes.append(result)
                done.set()
            trio.lowlevel.start_guest_run(
                guest, run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
                done_callback=over)
            await done.wait()
            print(outcomes[0].unwrap())
        asyncio.run(main())
        """,
        home,
    )
    assert [line.startswith(NO_LOOP) for line in said] == [True]


def test_no_event_loop_at_all(home: Path) -> None:
    said = run_program(
        """
        print(outcome(ramet.Host(home).__aenter__().send, None))
        """,
        home,
    )
    assert [line.startswith(NO_LOOP) for line in said] == [True]


@pytest.mark.parametrize("loop", LOOPS_SHORTLY)
def test_sync_inside_a_running_loop(home: Path, loop: str) -> None:
    """A notebook's cells run in an event loop; so do handlers of web frameworks."""
    said = run_program(
        """
        async def main():
            with ramet.sync.Host(home) as host:
                async with ramet.Host(home) as other:
                    print(host.list(), await other.list())
        asyncio.run(main())
        """,
        home,
        loop,
    )
    assert said == ["[] []"]


@pytest.mark.parametrize("loop", LOOPS_SHORTLY)
def test_asyncio_in_debug_mode(home: Path, loop: str) -> None:
    """It finds calls from wrong threads, and what is never awaited."""
    said = run_program(
        """
        import logging
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # without how long a callback has taken
        async def main():
            async with ramet.Host(home) as host:
                print(asyncio.get_running_loop().get_debug(), await host.list())
        asyncio.run(main(), debug=True)
        with ramet.sync.Host(home) as host:
            print(host.list())
        """,
        home,
        loop,
        options=["-X", "dev", "-W", "error"],
    )
    assert said == ["True []", "[]"]
