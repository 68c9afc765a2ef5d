"""One sequence of a hunt: steps drawn one after another, each checked before the next is drawn."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import anyio

import ramet
from ramet.errors import GuestLostError, RametError
from ramet.model.record import RunningVmm
from ramet.paths import Home
from ramet.system import processes, spawn
from tests.endurance.hunt import checks
from tests.endurance.hunt.guests import Kind, require
from tests.endurance.hunt.killed import Killer
from tests.endurance.hunt.model import Contents, Guest, Span
from tests.endurance.hunt.operations import Operation, perform
from tests.endurance.hunt.steps import Choices, Limits
from tests.endurance.hunt.world import Tally, World

STEP_LIMIT_S = 150.0


class Hunt(World):
    """A family in a home of its own, and what is done to it."""

    def __init__(self, home: Path, kind: Kind, limits: Limits, tally: Tally, killer: Killer) -> None:
        super().__init__(home, kind, limits, tally)
        self.journal: list[str] = []
        self.seed = 0
        self._killer = killer
        self._points: dict[str, int] = {}
        """How many points an operation was seen to pass."""

    @property
    def choices(self) -> Choices:
        """Of the step that is under way."""
        return self.steps.choices

    async def run(self, steps: Sequence[int]) -> None:
        """The whole sequence: a number a step, from which its choices follow. Raises `CorruptionError`, or
        whatever else went wrong. What is left then is for the caller to end.
        """
        self.tally.sequences += 1
        try:
            async with anyio.create_task_group() as self.tasks:
                await self._run(steps)
        finally:
            self.inodes.close()

    async def _run(self, steps: Sequence[int]) -> None:
        await self.open()
        vm = await (await self.kind.boot(self.host, "first")).detach()
        await self.adopt(vm.id, Contents(), None)
        if self.limits.guests > 1:
            await self._write()
            await self._carry_out_plainly(
                Operation("fork", vm.id, self.steps.name("f"), self.limits.guests - 1)
            )
        for number in steps:
            self.steps.choices = Choices(number, self.seed)
            with anyio.fail_after(STEP_LIMIT_S):
                await self._step()
        with anyio.fail_after(STEP_LIMIT_S * 4):
            await self._end()
        await self.close()

    async def _step(self) -> None:
        self.tally.steps += 1
        self.touched = set()
        await self._write()
        if (busy := self.steps.busy()) is not None:
            await self._busy(*busy)
        elif (pair := self.steps.pair()) is not None:
            await self._pair(*pair)
        else:
            operation = self.steps.operation()
            if operation.verb == "kill":
                await self._kill(operation)
            else:
                await self._carry_out(operation)
        await self.check(deep=False)

    def _say(self, text: str) -> None:
        self.journal.append(f"{self.tally.steps}: {text}")

    async def _write(self) -> None:
        running = self.family.in_state("running")
        chance = Random(self.choices.number(1 << 32))
        for guest in chance.sample(running, min(len(running), chance.randint(1, 3))):
            vm = await self.host.get(guest.id)
            self.tally.writes += await self.kind.write(vm, guest.contents, self.family, chance)
            self.touched.add(guest.id)

    async def _carry_out(self, operation: Operation) -> None:
        ways = ["plain"] * 7
        if self.limits.kills:
            ways += ["point", "point", "time"]
            if (guest := self.family.guests.get(operation.target)) is not None and guest.has_vmm:
                ways += ["victim"]
        way = self.choices.pick(ways)
        if operation.verb == "import":
            await perform(self.host, Operation("export", operation.target, file=operation.file))
        self._say(f"{operation} ({way})")
        self.tally.done[f"{operation.verb}/{way}"] += 1
        before = time.monotonic()
        try:
            outcome = await self._outcome(operation, way)
            if operation.verb == "export" and outcome == "done":
                await self._import_back(operation)
        finally:
            Path(operation.file or self.home.root / "exported").unlink(missing_ok=True) if operation.verb in (
                "export",
                "import",
            ) else None
        self.journal[-1] += f" {outcome} in {time.monotonic() - before:.2f} s"
        await self.conclude(operation, outcome, victim=operation.target if way == "victim" else None)

    async def _carry_out_plainly(self, operation: Operation) -> None:
        await perform(self.host, operation)
        await self.conclude(operation, "done", None)

    async def _outcome(self, operation: Operation, way: str) -> str:
        """`done`, `killed`, or `failed` where it may: its VMM was killed."""
        match way:
            case "plain":
                await perform(self.host, operation)
                return "done"
            case "victim":
                delay_s = self.choices.number(200) / 1000
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._kill_vmm, self._vmm_of(operation.target), delay_s)
                    try:
                        await perform(self.host, operation)
                    except RametError as error:
                        self._say(f"  {type(error).__name__}: {error.message}")
                        return "failed"
                return "perhaps"
            case _:
                known = self._points.get(operation.verb, 60)
                point = self.choices.number(known * 5 // 4) + 1 if way == "point" else 0
                after_s = self.choices.number(400) / 1000 if way == "time" else None
                self.journal[-1] += f" at {point}" if point else f" after {after_s} s"
                await self.close()
                try:
                    ended = await self._killer.run(self.home.root, operation, point=point, after_s=after_s)
                finally:
                    await self.open()
                require(ended.how != "failed", f"{operation} failed: {ended.said}")
                if ended.points:
                    self._points[operation.verb] = ended.points
                self.tally.done[ended.how] += 1
                return ended.how

    async def _kill_vmm(self, vmm: RunningVmm | None, delay_s: float = 0) -> None:
        await anyio.sleep(delay_s)
        if vmm is not None:
            await processes.kill(vmm.process)

    def _vmm_of(self, guest_id: str) -> RunningVmm | None:
        return self.host._opened.store.get(guest_id).vmm

    async def _kill(self, operation: Operation) -> None:
        self._say(str(operation))
        self.tally.done["kill"] += 1
        await self._kill_vmm(self._vmm_of(operation.target))
        guest = self.family.guests[operation.target]
        fact = (await self.instances())[guest.id]
        require(fact.state == "failed", f"{guest.name} is {fact.state}; its VMM was killed")
        guest.state = "failed"

    async def _import_back(self, operation: Operation) -> None:
        name = self.steps.name("i")
        await perform(self.host, Operation("import", name=name, file=operation.file))
        await self.conclude(Operation("import", operation.target, name), "done", None)

    async def _pair(self, one: Operation, other: Operation) -> None:
        self._say(f"{one} and {other}")
        self.tally.done[f"{one.verb}+{other.verb}"] += 1
        outcomes: dict[Operation, str] = {}
        tolerated = other.verb == "remove_snapshot"

        async def attempt(operation: Operation) -> None:
            outcomes[operation] = "killed"
            try:
                await perform(self.host, operation)
                outcomes[operation] = "done"
            except RametError as error:
                self._say(f"  {operation.verb}: {type(error).__name__}: {error.message}")
                if not tolerated or operation is other:
                    raise

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(attempt, one)
            tasks.start_soon(attempt, other)
        for operation, outcome in outcomes.items():
            await self.conclude(operation, outcome, None)

    async def _busy(self, guest: Guest, operation: Operation) -> None:
        """Capture a guest while it writes: the capture has to be of one moment."""
        self._say(f"{operation} (busy)")
        self.tally.done[f"{operation.verb}/busy"] += 1
        vm = await self.host.get(guest.id)
        written: list[int] = []
        begun = 0
        over = False

        async def write() -> None:
            nonlocal begun
            while not over or len(written) < 2:
                begun = self.family.number()
                for place in (0, 1, 2):
                    await self._put(vm, place, begun)
                written.append(begun)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            while not written:
                await anyio.sleep(0.001)
            span = Span(written[-1], 0)
            await perform(self.host, operation)
            span = Span(span.first, begun)
            over = True
        self.kind.note(guest.contents, (written[-1],) * 3)
        self.touched.add(guest.id)
        contents = guest.contents.copy()
        if operation.verb == "snapshot":
            await self.conclude(operation, "done", None, contents, span)
            return
        facts = await self.instances()
        new = [fact for fact in facts.values() if fact.id not in self.family.guests]
        require(len(new) == operation.count, f"{operation}: {len(new)} forks")
        found = await self.resolve(contents, span, new[0].id)
        await self.conclude(operation, "done", None, found)

    async def _put(self, vm: ramet.VM, place: int, number: int) -> None:
        try:
            await self.kind.put(vm, place, number)
        except GuestLostError:
            # Firecracker's saving cuts connections, and the probe's sessions don't survive that.
            await self.kind.put(vm, place, number)

    async def _end(self) -> None:
        """Everything is looked at once more, each capture through a fork of it; then all of it goes."""
        self._say("the end")
        for guest in self.family.in_state("paused"):
            await (await self.host.get(guest.id)).resume()
            guest.state = "running"
        await self.check(deep=True)
        for snapshot in self.family.snapshots.values():
            verified = await (await self.host.snapshot(snapshot.id)).verify()
            require(verified.ok, f"{snapshot.name}: {verified}")
        captures = [
            *(
                Operation("fork", guest.id, self.steps.name("e"))
                for guest in self.family.in_state("template", "standby")
            ),
            *(
                Operation("fork_snapshot", snapshot, self.steps.name("e"))
                for snapshot in self.family.snapshots
            ),
        ]
        for operation in captures:
            await self._carry_out_plainly(operation)
        await self.check(deep=True)
        for guest in list(self.family.guests.values()):
            await (await self.host.get(guest.id)).remove(force=True)
            del self.family.guests[guest.id]
        # Snapshots need nobody any more.
        for snapshot_id in list(self.family.snapshots)[:2]:
            operation = Operation("fork_snapshot", snapshot_id, self.steps.name("e"))
            await self._carry_out_plainly(operation)
        await self.check(deep=True)
        for snapshot_id in list(self.family.snapshots):
            await (await self.host.snapshot(snapshot_id)).remove()
            del self.family.snapshots[snapshot_id]
        for guest in list(self.family.guests.values()):
            await (await self.host.get(guest.id)).remove(force=True)
            del self.family.guests[guest.id]
        await self.check(deep=True)


async def end_everything(home: Path) -> None:
    """End what a sequence that failed has left, and remove its home."""
    await checks.worker_at_rest(Home(home))
    for below in (Home(home).instances, Home(home).staging):
        for running in spawn.spawned_below(below).values() if below.exists() else ():
            for process in running:
                await processes.kill(process)
    shutil.rmtree(home, ignore_errors=True)
