"""One sequence of a hunt: steps drawn one after another, each checked before the next is drawn."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

import anyio
import anyio.abc

import ramet
from ramet.errors import GuestLostError, RametError
from ramet.host import processes
from ramet.model.record import RunningVmm
from ramet.model.shapes import Instance
from ramet.paths import Home
from tests.hunt import checks
from tests.hunt.guests import CorruptionError, Kind, require
from tests.hunt.killed import Killer
from tests.hunt.model import Capture, Contents, Family, Guest, Span
from tests.hunt.operations import LIVES_ON, Operation, perform

T = TypeVar("T")

STEP_LIMIT_S = 150.0
_ASKED_AT_ONCE = 4
NEW_STATE = {
    "pause": "paused",
    "resume": "running",
    "standby": "standby",
    "restore": "running",
    "rewind": "running",
    "template": "template",
    "stop": "stopped",
    "start": "running",
}
LEGAL = {
    "pause": ("running",),
    "resume": ("paused",),
    "standby": ("running", "paused"),
    "restore": ("standby",),
    "template": ("running", "paused", "standby"),
    "stop": ("running", "paused", "standby", "failed"),
    "start": ("stopped",),
}
_FORKABLE = ("template", "standby", "running", "paused")


class Choices:
    """A step's choices: all from one number, so that a step is the same whichever steps were before it."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`."""
        return self._random.choice(options)

    def number(self, limit: int) -> int:
        """One of 0 to `limit` - 1."""
        return self._random.randrange(limit)


@dataclass
class Limits:
    """How large a family is, and how long a sequence."""

    guests: int = 12
    most_guests: int = 18
    captures: int = 8
    steps: int = 60
    checked: int = 1000
    """How many guests are asked after a step, besides those that it was about."""
    kills: bool = True


@dataclass
class Tally:
    """What was done, for the report."""

    steps: int = 0
    sequences: int = 0
    done: Counter[str] = field(default_factory=Counter)
    guests_checked: int = 0
    files_checked: int = 0
    writes: int = 0
    most_guests: int = 0


class Hunt:
    """A family in a home of its own, and what is done to it."""

    def __init__(self, home: Path, kind: Kind, limits: Limits, tally: Tally, killer: Killer) -> None:
        self.home = Home(home)
        self.kind = kind
        self.choices = Choices(0)
        self.limits = limits
        self.tally = tally
        self._killer = killer
        self.family = Family()
        self.journal: list[str] = []
        self.inodes = checks.Inodes()
        self.points: dict[str, int] = {}
        self._host: ramet.Host | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._close_host = self._closed = anyio.Event()
        self._names = 0
        self._touched: set[str] = set()

    @property
    def host(self) -> ramet.Host:
        """The Host that is open."""
        assert self._host is not None
        return self._host

    async def _open(self) -> None:
        """As the next ramet process does: it finds what the last one has left."""
        assert self._tasks is not None
        await self._tasks.start(self._hold)

    async def _hold(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        # In a task of its own: a step has a limit, and may close the Host that another step has opened.
        self._close_host, self._closed = anyio.Event(), anyio.Event()
        try:
            async with ramet.Host(self.home.root) as self._host:
                task_status.started()
                await self._close_host.wait()
        finally:
            self._host = None
            self._closed.set()

    async def _close(self) -> None:
        self._close_host.set()
        await self._closed.wait()

    async def run(self, steps: Sequence[int]) -> None:
        """The whole sequence: a number a step, from which its choices follow. Raises `CorruptionError`, or whatever else went wrong. What is left then is
        for the caller to end.
        """
        self.tally.sequences += 1
        try:
            async with anyio.create_task_group() as self._tasks:
                await self._run(steps)
        finally:
            self.inodes.close()

    async def _run(self, steps: Sequence[int]) -> None:
        await self._open()
        vm = await (await self.kind.boot(self.host, "first")).detach()
        await self._adopt(vm.id, Contents(), None)
        if self.limits.guests > 1:
            await self._write()
            await self._carry_out_plainly(Operation("fork", vm.id, self._name("f"), self.limits.guests - 1))
        for seed in steps:
            self.choices = Choices(seed)
            with anyio.fail_after(STEP_LIMIT_S):
                await self._step()
        with anyio.fail_after(STEP_LIMIT_S * 4):
            await self._end()
        await self._close()

    # A step

    async def _step(self) -> None:
        self.tally.steps += 1
        self._touched = set()
        await self._write()
        if (busy := self._pick_busy()) is not None:
            await self._busy(*busy)
        elif (pair := self._pick_pair()) is not None:
            await self._pair(*pair)
        else:
            operation = self._pick_operation()
            if operation.verb == "kill":
                await self._kill(operation)
            else:
                await self._carry_out(operation)
        await self._check(deep=False)

    def _say(self, text: str) -> None:
        self.journal.append(f"{self.tally.steps}: {text}")

    def _name(self, letter: str) -> str:
        self._names += 1
        return f"{letter}{self._names}"

    async def _write(self) -> None:
        running = self.family.in_state("running")
        chance = Random(self.choices.number(1 << 32))
        for guest in chance.sample(running, min(len(running), chance.randint(1, 3))):
            vm = await self.host.get(guest.id)
            self.tally.writes += await self.kind.write(vm, guest.contents, self.family, chance)
            self._touched.add(guest.id)

    def _pick_operation(self) -> Operation:
        family, limits = self.family, self.limits
        guests, snapshots = len(family.guests), len(family.snapshots)
        living = len(family.in_state("running", "paused"))
        options: list[tuple[int, str]] = []
        if guests < limits.most_guests:
            options.append((3 if living >= limits.guests else 14, "fork"))
            if snapshots:
                options.append((2 if living >= limits.guests else 6, "fork_snapshot"))
        if snapshots < limits.captures:
            options += [(4, "snapshot"), (1, "import")] if snapshots else [(4, "snapshot")]
        if snapshots:
            options += [(2 if snapshots < limits.captures else 8, "remove_snapshot"), (2, "export")]
            if self._rewindable():
                options.append((5, "rewind"))
        if living > limits.guests * 2 // 3 or guests >= limits.most_guests:
            options.append((2 if guests < limits.most_guests else 12, "remove"))
        options += [(4, "compact"), (1, "work"), (1, "nothing")]
        if limits.kills:
            options.append((2, "kill"))
        for verb, states in LEGAL.items():
            if family.in_state(*states):
                few = {"template": 1, "stop": 1, "standby": 3, "restore": 6, "start": 6, "pause": 2, "resume": 4}
                options.append((few[verb], verb))
        verb = self.choices.pick([verb for weight, verb in options for _ in range(weight)])
        return self._operation(verb)

    def _rewindable(self) -> list[Capture]:
        guests = self.family.guests
        return [
            one
            for one in self.family.snapshots.values()
            if one.source in guests and guests[one.source].state != "template"
        ]

    def _operation(self, verb: str) -> Operation:
        family, pick = self.family, self.choices.pick
        match verb:
            case "fork":
                # Twice as often of a capture than of what lives.
                candidates = [*family.in_state("template", "standby") * 2, *family.in_state("running", "paused")]
                if not candidates:
                    return Operation("nothing")
                source = pick(candidates)
                return Operation(
                    "fork",
                    source.id,
                    self._name("f"),
                    pick((1, 1, 2, 3)),
                    share_memory=pick((True,) * 7 + (False,)),
                )
            case "fork_snapshot":
                snapshot = pick(list(family.snapshots.values()))
                return Operation(verb, snapshot.id, self._name("f"), pick((1, 1, 2, 3)))
            case "snapshot":
                sources = family.in_state("running", "paused", "standby")
                if not sources:
                    return Operation("nothing")
                return Operation(verb, pick(sources).id, self._name("s"))
            case "rewind":
                snapshot = pick(self._rewindable())
                return Operation(verb, snapshot.source, snapshot.id)
            case "remove":
                return Operation(verb, pick(list(family.guests.values())).id)
            case "remove_snapshot":
                return Operation(verb, pick(list(family.snapshots)))
            case "export" | "import":
                snapshot = pick(list(family.snapshots))
                return Operation(verb, snapshot, self._name("i"), file=str(self.home.root / "exported"))
            case "compact":
                captures = [
                    *(self.home.instance(one.id) for one in family.in_state("template", "standby")),
                    *(self.home.snapshot(one) for one in family.snapshots),
                ]
                # The worker leaves alone what is in standby.
                captures = [one for one in captures if not self._in_standby(one)]
                if not captures:
                    return Operation("nothing")
                return Operation(verb, file=str(pick(captures)))
            case "work" | "nothing":
                return Operation(verb)
            case "kill":
                victims = family.in_state("running", "paused")
                return Operation(verb, pick(victims).id) if victims else Operation("nothing")
            case _:
                return Operation(verb, pick(family.in_state(*LEGAL[verb])).id)

    def _in_standby(self, directory: Path) -> bool:
        guest = self.family.guests.get(directory.name)
        return guest is not None and guest.state == "standby"

    # How it is carried out

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
        await self._settle(operation, outcome, victim=operation.target if way == "victim" else None)

    async def _carry_out_plainly(self, operation: Operation) -> None:
        await perform(self.host, operation)
        await self._settle(operation, "done", None)

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
                known = self.points.get(operation.verb, 60)
                point = self.choices.number(known * 5 // 4) + 1 if way == "point" else 0
                after_s = self.choices.number(400) / 1000 if way == "time" else None
                self.journal[-1] += f" at {point}" if point else f" after {after_s} s"
                await self._close()
                try:
                    ended = await self._killer.run(self.home.root, operation, point=point, after_s=after_s)
                finally:
                    await self._open()
                require(ended.how != "failed", f"{operation} failed: {ended.said}")
                if ended.points:
                    self.points[operation.verb] = ended.points
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
        fact = (await self._instances())[guest.id]
        require(fact.state == "failed", f"{guest.name} is {fact.state}; its VMM was killed")
        guest.state = "failed"

    async def _import_back(self, operation: Operation) -> None:
        name = self._name("i")
        await perform(self.host, Operation("import", name=name, file=operation.file))
        await self._settle(Operation("import", operation.target, name), "done", None)

    def _pick_pair(self) -> tuple[Operation, Operation] | None:
        """Two operations at once, of which neither must spoil the other."""
        family, pick = self.family, self.choices.pick
        if pick((False,) * 7 + (True,)) is False:
            return None
        kind = pick(("branch+branch", "fork+compact", "fork+remove", "snapshot+branch", "rewind+branch"))
        room = len(family.guests) < self.limits.most_guests
        running = family.in_state("running")
        if not running or not room:
            return None
        guest = pick(running)
        branch = Operation("fork", guest.id, self._name("f"))
        if kind == "branch+branch":
            return branch, Operation("fork", guest.id, self._name("f"))
        if kind == "snapshot+branch":
            return branch, Operation("snapshot", guest.id, self._name("s"))
        if not family.snapshots:
            return None
        snapshot = pick(list(family.snapshots.values()))
        fork = Operation("fork_snapshot", snapshot.id, self._name("f"), 2)
        if kind == "fork+compact":
            return fork, Operation("compact", file=str(self.home.snapshot(snapshot.id)))
        if kind == "rewind+branch":
            others = [one for one in self._rewindable() if one.source != guest.id]
            return (branch, Operation("rewind", others[0].source, others[0].id)) if others else None
        return fork, Operation("remove_snapshot", snapshot.id)

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
            await self._settle(operation, outcome, None)

    def _pick_busy(self) -> tuple[Guest, Operation] | None:
        if self.choices.pick((False,) * 9 + (True,)) is False:
            return None
        running = self.family.in_state("running")
        if not running:
            return None
        guest = self.choices.pick(running)
        if len(self.family.guests) < self.limits.most_guests and self.choices.pick((True, False)):
            return guest, Operation("fork", guest.id, self._name("f"), 2)
        if len(self.family.snapshots) < self.limits.captures:
            return guest, Operation("snapshot", guest.id, self._name("s"))
        return None

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
        self._touched.add(guest.id)
        contents = guest.contents.copy()
        if operation.verb == "snapshot":
            await self._settle(operation, "done", None, contents, span)
            return
        facts = await self._instances()
        new = [one for one in facts.values() if one.id not in self.family.guests]
        require(len(new) == operation.count, f"{operation}: {len(new)} forks")
        found = await self._resolve(contents, span, new[0].id)
        await self._settle(operation, "done", None, found)

    async def _put(self, vm: ramet.VM, place: int, number: int) -> None:
        try:
            await self.kind.put(vm, place, number)
        except GuestLostError:
            # Firecracker's saving cuts connections, and the probe's sessions don't survive that.
            await self.kind.put(vm, place, number)

    async def _resolve(self, contents: Contents, span: Span, fork_id: str) -> Contents:
        """The contents of a capture that was made of a busy guest, from what its first fork has."""
        first, second, third = numbers = await self.kind.get(await self.host.get(fork_id))
        order = span.first <= third <= second <= first <= span.last
        require(order and first - third <= 1, f"a capture of no moment: {numbers}, {span}")
        found = contents.copy()
        self.kind.note(found, numbers)
        return found

    # What came of it

    async def _instances(self) -> dict[str, Instance]:
        return {one.id: one for one in await self.host.list(everything=True)}

    async def _adopt(self, new_id: str, contents: Contents, parent: str | None) -> None:
        info = await (await self.host.get(new_id)).info()
        require(info.state == "running", f"the new {info.name} is {info.state}")
        self.family.guests[new_id] = Guest(
            new_id, info.name, "running", info.generation, contents.copy(), parent
        )
        self._touched.add(new_id)
        living = len(self.family.in_state("running", "paused"))
        self.tally.most_guests = max(self.tally.most_guests, living)

    async def _settle(
        self,
        operation: Operation,
        outcome: str,
        victim: str | None,
        contents: Contents | None = None,
        span: Span | None = None,
    ) -> None:
        """Bring the family up to what was done, or perhaps done: each thing is what it was or what it was to
        be.
        """
        family, verb = self.family, operation.verb
        if victim is not None and (guest := family.guests.get(victim)) is not None:
            fact = (await self._instances()).get(victim)
            if fact is not None and fact.state == "failed":
                guest.state = "failed"
                victim = None
        if verb in LIVES_ON:
            if victim is not None or operation.target != victim:
                await self._settle_target(family.guests[operation.target], operation, outcome)
        elif verb in {"fork", "fork_snapshot"}:
            await self._settle_forks(operation, outcome, contents)
        elif verb == "snapshot":
            source = family.guests[operation.target]
            await self._settle_snapshot(operation, outcome, source.id, contents or source.contents, span)
        elif verb == "import":
            origin = family.snapshots[operation.target]
            source_id = origin.source
            await self._settle_snapshot(operation, outcome, source_id, origin.contents, origin.span)
        elif verb == "remove_snapshot":
            there = {one.id for one in await self.host.snapshots()}
            require(outcome != "done" or operation.target not in there, f"{operation}: it is still there")
            if operation.target not in there:
                del family.snapshots[operation.target]

    async def _settle_target(self, guest: Guest, operation: Operation, outcome: str) -> None:
        verb = operation.verb
        fact = (await self._instances()).get(guest.id)
        if verb == "remove":
            require(outcome != "done" or fact is None, f"{guest.name} is still there")
            if fact is None:
                del self.family.guests[guest.id]
            return
        assert fact is not None, f"{guest.name} is gone"
        if guest.state == "failed" and fact.state == "failed":
            return
        new = fact.state == NEW_STATE[verb]
        if verb in {"rewind", "restore"}:
            new = new and fact.generation > guest.generation
        same = fact.state == guest.state and fact.generation == guest.generation
        if outcome == "done":
            require(new, f"{operation}: {guest.name} is {fact.state}, generation {fact.generation}")
        require(new or same, f"{operation}: {guest.name} was {guest.state}, is {fact.state}")
        self._touched.add(guest.id)
        if not new:
            return
        if verb == "rewind":
            snapshot = self.family.snapshots[operation.name]
            if snapshot.span is not None:
                snapshot.contents = await self._resolve(snapshot.contents, snapshot.span, guest.id)
                snapshot.span = None
            guest.contents = snapshot.contents.copy()
        if verb == "start":
            guest.contents.memory = {}
            await self.kind.awake(await self.host.get(guest.id))
        guest.state, guest.generation = fact.state, fact.generation

    async def _settle_forks(self, operation: Operation, outcome: str, contents: Contents | None) -> None:
        family, name = self.family, operation.name
        new = [
            one
            for one in (await self._instances()).values()
            if one.id not in family.guests and (one.name == name or one.name.startswith(f"{name}-"))
        ]
        if outcome == "done":
            require(len(new) == operation.count, f"{operation}: {len(new)} forks are there")
        for one in new:
            if contents is None and operation.verb == "fork_snapshot":
                snapshot = family.snapshots[operation.target]
                if snapshot.span is not None:
                    snapshot.contents = await self._resolve(snapshot.contents, snapshot.span, one.id)
                    snapshot.span = None
                contents = snapshot.contents
            elif contents is None:
                contents = family.guests[operation.target].contents
            await self._adopt(one.id, contents, one.parent)
        self._touched.add(operation.target)

    async def _settle_snapshot(
        self, operation: Operation, outcome: str, source: str, contents: Contents, span: Span | None
    ) -> None:
        new = [one for one in await self.host.snapshots() if one.id not in self.family.snapshots]
        require(len(new) == 1 or (outcome != "done" and not new), f"{operation}: {len(new)} snapshots")
        for one in new:
            require(one.name == operation.name, f"{operation}: it is named {one.name}")
            verified = await (await self.host.snapshot(one.id)).verify()
            require(verified.ok, f"{operation}: {verified}")
            self.family.snapshots[one.id] = Capture(one.id, one.name or "", source, contents.copy(), span)
        self._touched.add(operation.target)

    # Checks

    async def _check(self, *, deep: bool) -> None:
        await checks.worker_at_rest(self.home)
        facts = await self._instances()
        for guest in self.family.guests.values():
            fact = facts.get(guest.id)
            require(fact is not None, f"{guest.name} is gone")
            assert fact is not None
            require(fact.state == guest.state, f"{guest.name} is {fact.state}, not {guest.state}")
            require(fact.generation == guest.generation or guest.state == "running", f"{guest.name}: generation")
        checks.check_home(self.host, self.family)
        self.tally.files_checked += self.inodes.look(self.home)
        chance = Random(self.choices.number(1 << 16))
        store = self.host._opened.store
        for guest in self.family.guests.values():
            record, directory = store.get(guest.id), self.home.instance(guest.id)
            close = guest.has_vmm and (deep or guest.id in self._touched or chance.random() < 0.15)
            self.kind.look(record, directory, guest.contents, memory=close)
        asked = [one for one in self.family.guests.values() if one.state == "running"]
        others = [one for one in asked if one.id not in self._touched]
        if not deep and len(others) > self.limits.checked:
            chosen = {one.id for one in chance.sample(others, self.limits.checked)} | self._touched
            asked = [one for one in asked if one.id in chosen]
        limiter = anyio.CapacityLimiter(_ASKED_AT_ONCE)

        async def ask(guest: Guest, chance: Random) -> None:
            async with limiter:
                vm, closely = await self.host.get(guest.id), deep or guest.id in self._touched
                await self.kind.check(vm, guest.contents, chance, deep=closely)

        async with anyio.create_task_group() as tasks:
            for guest in asked:
                tasks.start_soon(ask, guest, Random(chance.random()))
        self.tally.guests_checked += len(asked)

    async def _end(self) -> None:
        """Everything is looked at once more, each capture through a fork of it; then all of it goes."""
        self._say("the end")
        for guest in self.family.in_state("paused"):
            await (await self.host.get(guest.id)).resume()
            guest.state = "running"
        await self._check(deep=True)
        for snapshot in self.family.snapshots.values():
            verified = await (await self.host.snapshot(snapshot.id)).verify()
            require(verified.ok, f"{snapshot.name}: {verified}")
        captures = [
            *(Operation("fork", one.id, self._name("e")) for one in self.family.in_state("template", "standby")),
            *(Operation("fork_snapshot", one, self._name("e")) for one in self.family.snapshots),
        ]
        for operation in captures:
            await self._carry_out_plainly(operation)
        await self._check(deep=True)
        for guest in list(self.family.guests.values()):
            await (await self.host.get(guest.id)).remove(force=True)
            del self.family.guests[guest.id]
        # Snapshots need nobody any more.
        for one in list(self.family.snapshots)[:2]:
            operation = Operation("fork_snapshot", one, self._name("e"))
            await self._carry_out_plainly(operation)
        await self._check(deep=True)
        for one in list(self.family.snapshots):
            await (await self.host.snapshot(one)).remove()
            del self.family.snapshots[one]
        for guest in list(self.family.guests.values()):
            await (await self.host.get(guest.id)).remove(force=True)
            del self.family.guests[guest.id]
        await self._check(deep=True)


async def end_everything(home: Path) -> None:
    """End what a sequence that failed has left, and remove its home."""
    await checks.worker_at_rest(Home(home))
    for below in (Home(home).instances, Home(home).staging):
        for running in processes.spawned_below(below).values() if below.exists() else ():
            for process in running:
                await processes.kill(process)
    shutil.rmtree(home, ignore_errors=True)


__all__ = ["Choices", "CorruptionError", "Hunt", "Limits", "Tally", "end_everything"]
