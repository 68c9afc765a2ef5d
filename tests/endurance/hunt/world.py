"""A family in its home: what came of an operation is brought into the model, and everything is checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import anyio
import anyio.abc

import ramet
from ramet.model.schema import Instance
from ramet.paths import Home
from tests.endurance.hunt import checks
from tests.endurance.hunt.guests import Kind, require
from tests.endurance.hunt.model import Capture, Contents, Family, Guest, Span
from tests.endurance.hunt.operations import LIVES_ON, Operation
from tests.endurance.hunt.steps import Limits, Steps

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


class World:
    """A home, whichever Host has it open, and the family that has to be in it."""

    def __init__(self, home: Path, kind: Kind, limits: Limits, tally: Tally) -> None:
        self.home = Home(home)
        self.kind = kind
        self.limits = limits
        self.tally = tally
        self.family = Family()
        self.steps = Steps(self.home, self.family, limits)
        self.inodes = checks.Inodes()
        self.touched: set[str] = set()
        """Who the step was about: they are looked at more closely."""
        self.tasks: anyio.abc.TaskGroup | None = None
        self._host: ramet.Host | None = None
        self._close_host = self._closed = anyio.Event()

    @property
    def host(self) -> ramet.Host:
        """The Host that is open."""
        assert self._host is not None
        return self._host

    async def open(self) -> None:
        """As the next ramet process does: it finds what the last one has left."""
        assert self.tasks is not None
        await self.tasks.start(self._hold)

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

    async def close(self) -> None:
        """Close the Host that is open."""
        self._close_host.set()
        await self._closed.wait()

    async def instances(self) -> dict[str, Instance]:
        """What ramet lists, by id."""
        return {instance.id: instance for instance in await self.host.list(everything=True)}

    async def adopt(self, new_id: str, contents: Contents, parent: str | None) -> None:
        """A new instance joins the family. Raises `CorruptionError` unless it runs."""
        info = await (await self.host.get(new_id)).info()
        require(info.state == "running", f"the new {info.name} is {info.state}")
        self.family.guests[new_id] = Guest(
            new_id, info.name, "running", info.generation, contents.copy(), parent
        )
        self.touched.add(new_id)
        living = len(self.family.in_state("running", "paused"))
        self.tally.most_guests = max(self.tally.most_guests, living)

    async def resolve(self, contents: Contents, span: Span, fork_id: str) -> Contents:
        """The contents of a capture that was made of a busy guest, from what its first fork has."""
        first, second, third = numbers = await self.kind.get(await self.host.get(fork_id))
        order = span.first <= third <= second <= first <= span.last
        require(order and first - third <= 1, f"a capture of no moment: {numbers}, {span}")
        found = contents.copy()
        self.kind.note(found, numbers)
        return found

    async def conclude(
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
            fact = (await self.instances()).get(victim)
            if fact is not None and fact.state == "failed":
                guest.state = "failed"
                victim = None
        if verb in LIVES_ON:
            if victim is not None or operation.target != victim:
                await self._conclude_target(family.guests[operation.target], operation, outcome)
        elif verb in {"fork", "fork_snapshot"}:
            await self._conclude_forks(operation, outcome, contents)
        elif verb == "snapshot":
            source = family.guests[operation.target]
            await self._conclude_snapshot(operation, outcome, source.id, contents or source.contents, span)
        elif verb == "import":
            origin = family.snapshots[operation.target]
            source_id = origin.source
            await self._conclude_snapshot(operation, outcome, source_id, origin.contents, origin.span)
        elif verb == "remove_snapshot":
            there = {snapshot.id for snapshot in await self.host.snapshots()}
            require(outcome != "done" or operation.target not in there, f"{operation}: it is still there")
            if operation.target not in there:
                del family.snapshots[operation.target]

    async def _conclude_target(self, guest: Guest, operation: Operation, outcome: str) -> None:
        verb = operation.verb
        fact = (await self.instances()).get(guest.id)
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
        self.touched.add(guest.id)
        if not new:
            return
        if verb == "rewind":
            snapshot = self.family.snapshots[operation.name]
            if snapshot.span is not None:
                snapshot.contents = await self.resolve(snapshot.contents, snapshot.span, guest.id)
                snapshot.span = None
            guest.contents = snapshot.contents.copy()
        if verb == "start":
            guest.contents.memory = {}
            await self.kind.awake(await self.host.get(guest.id))
        guest.state, guest.generation = fact.state, fact.generation

    async def _conclude_forks(self, operation: Operation, outcome: str, contents: Contents | None) -> None:
        family, name = self.family, operation.name
        new = [
            instance
            for instance in (await self.instances()).values()
            if instance.id not in family.guests
            and (instance.name == name or instance.name.startswith(f"{name}-"))
        ]
        if outcome == "done":
            require(len(new) == operation.count, f"{operation}: {len(new)} forks are there")
        for fork in new:
            if contents is None and operation.verb == "fork_snapshot":
                snapshot = family.snapshots[operation.target]
                if snapshot.span is not None:
                    snapshot.contents = await self.resolve(snapshot.contents, snapshot.span, fork.id)
                    snapshot.span = None
                contents = snapshot.contents
            elif contents is None:
                contents = family.guests[operation.target].contents
            await self.adopt(fork.id, contents, fork.parent)
        self.touched.add(operation.target)

    async def _conclude_snapshot(
        self, operation: Operation, outcome: str, source: str, contents: Contents, span: Span | None
    ) -> None:
        new = [
            snapshot for snapshot in await self.host.snapshots() if snapshot.id not in self.family.snapshots
        ]
        require(len(new) == 1 or (outcome != "done" and not new), f"{operation}: {len(new)} snapshots")
        for info in new:
            require(info.name == operation.name, f"{operation}: it is named {info.name}")
            verified = await (await self.host.snapshot(info.id)).verify()
            require(verified.ok, f"{operation}: {verified}")
            self.family.snapshots[info.id] = Capture(info.id, info.name or "", source, contents.copy(), span)
        self.touched.add(operation.target)

    async def check(self, *, deep: bool) -> None:
        """Everything that has to hold. `deep`: every guest is looked at closely. Raises `CorruptionError`."""
        await checks.worker_at_rest(self.home)
        facts = await self.instances()
        for guest in self.family.guests.values():
            fact = facts.get(guest.id)
            require(fact is not None, f"{guest.name} is gone")
            assert fact is not None
            require(fact.state == guest.state, f"{guest.name} is {fact.state}, not {guest.state}")
            require(
                fact.generation == guest.generation or guest.state == "running", f"{guest.name}: generation"
            )
        checks.check_home(self.host, self.family)
        self.tally.files_checked += self.inodes.look(self.home)
        chance = Random(self.steps.choices.number(1 << 16))
        store = self.host._opened.store
        for guest in self.family.guests.values():
            record, directory = store.get(guest.id), self.home.instance(guest.id)
            close = guest.has_vmm and (deep or guest.id in self.touched or chance.random() < 0.15)
            self.kind.look(record, directory, guest.contents, memory=close)
        asked = [guest for guest in self.family.guests.values() if guest.state == "running"]
        others = [guest for guest in asked if guest.id not in self.touched]
        if not deep and len(others) > self.limits.checked:
            chosen = {guest.id for guest in chance.sample(others, self.limits.checked)} | self.touched
            asked = [guest for guest in asked if guest.id in chosen]
        limiter = anyio.CapacityLimiter(_ASKED_AT_ONCE)

        async def ask(guest: Guest, chance: Random) -> None:
            async with limiter:
                vm, closely = await self.host.get(guest.id), deep or guest.id in self.touched
                await self.kind.check(vm, guest.contents, chance, deep=closely)

        async with anyio.create_task_group() as tasks:
            for guest in asked:
                tasks.start_soon(ask, guest, Random(chance.random()))
        self.tally.guests_checked += len(asked)
