"""Best of N: eight forks of one prepared guest do one task differently, and the best is kept."""

import anyio

import ramet

N = 8
TASK = 'echo "$1" > /tmp/answer; echo $(($1 * (12 - $1)))'  # your agent: it prints a score


async def main() -> None:
    async with ramet.Host() as host:
        vm = await host.run("builtin", name="warm")
        await vm.exec("sh", "-c", "mkdir /srv/task", check=True)  # done once, inherited by all
        base = await vm.template()

        async with base.fork(N, name="try") as forks:
            scores = [0] * N

            async def attempt(index: int) -> None:
                words = ("sh", "-c", TASK, "task", str(index + 1))
                done = await forks[index].exec(*words, cwd="/srv/task", check=True)
                scores[index] = int(done.text)

            async with anyio.create_task_group() as tasks:
                for index in range(N):
                    tasks.start_soon(attempt, index)

            best = forks[scores.index(max(scores))]
            print("scores:", *scores)
            await best.keep()  # its seven siblings are removed

        answer = (await best.exec("cat", "/tmp/answer", check=True)).text.strip()
        print(f"{best.name} is kept, its answer is {answer}")
        await best.remove(force=True)  # this is an example: nothing stays


anyio.run(main)
