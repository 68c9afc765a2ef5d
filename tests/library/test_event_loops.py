"""Event loops that aren't asyncio's own, and those that ramet doesn't run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.library.programs import LOOPS, run_program

JOB = """
async def job(driver, image, **options):
    async with ramet.Host(home, **options) as host:
        warm = await host.run(image, name="warm", driver=driver)
        print("run", (await warm.inspect()).state)
        await warm.snapshot("early")
        async with warm.fork(2) as forks:
            print("branches", len(forks), [one.receipt.memory.mode for one in forks])
        await warm.pause()
        await warm.resume()
        await warm.standby()
        await warm.restore()
        await warm.rewind("early")
        print("rewound", (await warm.info()).generation)
        if image == "builtin":
            print("exec", (await warm.exec("cat", stdin="through")).text)
            async with warm.process("cat", stdin=True) as process:
                await process.write(bytes(2**20))
                await process.close_stdin()
                print("process", sum([len(chunk.data) async for chunk in process.output()]))
            async for chunk in warm.follow_logs():
                print("logs", bool(chunk))
                break
        snapshot = await host.snapshot("early")
        exported = home + "/file"
        await snapshot.export(exported)
        await (await host.import_snapshot(exported, name="again")).remove()
        os.unlink(exported)
        print("verified", (await snapshot.verify()).ok)
        await snapshot.remove()
        base = await warm.template()
        async with base.fork(3) as forks:
            print("forks", len(forks))
        await warm.remove(force=True)
"""


@pytest.mark.vm
@pytest.mark.parametrize("loop", LOOPS)
def test_a_whole_job(home: Path, loop: str) -> None:
    said = run_program(
        JOB + 'asyncio.run(job("qemu", "builtin"))', home, loop, options=["-X", "dev", "-W", "error"]
    )
    assert said == [
        "run running",
        "branches 2 ['shared', 'shared']",
        "rewound 2",
        "exec through",
        "process 1048576",
        "logs True",
        "verified True",
        "forks 3",
    ]
