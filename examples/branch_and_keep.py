"""Branch a running guest: two copies try two plans, the better copy is kept, the guest runs on."""

import anyio

import ramet

PLANS = ("gzip", "bzip2")


async def size_with(branch: ramet.VM, plan: str) -> int:
    """Try a plan in a branch, and return how many bytes are left."""
    return int((await branch.exec("sh", "-c", f"{plan} -c /tmp/work | wc -c", check=True)).text)


async def main() -> None:
    async with ramet.Host() as host:
        agent = await host.run("builtin", name="agent")
        await agent.exec("sh", "-c", "seq 100000 > /tmp/work", check=True)  # its work so far

        branches = await agent.fork(len(PLANS), name="idea")  # agent is paused for milliseconds
        sizes = []
        for branch, plan in zip(branches, PLANS, strict=True):
            sizes.append(await size_with(branch, plan))
            print(f"{branch.name}: {plan} leaves {sizes[-1]} bytes")

        best = branches[sizes.index(min(sizes))]
        await best.keep()  # its siblings are removed; it stays when the Host is left
        print("left:", *(instance.name for instance in await host.list()))
        lines = (await agent.exec("wc", "-l", "/tmp/work", check=True)).text.strip()
        print("agent still has", lines)

        await best.remove(force=True)  # this is an example: nothing stays


anyio.run(main)
