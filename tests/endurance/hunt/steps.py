"""What may be done next with a family, and which of it is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from ramet.paths import Home
from tests.endurance.hunt.model import Capture, Family, Guest
from tests.endurance.hunt.operations import Operation

T = TypeVar("T")

LEGAL = {
    "pause": ("running",),
    "resume": ("paused",),
    "standby": ("running", "paused"),
    "restore": ("standby",),
    "template": ("running", "paused", "standby"),
    "stop": ("running", "paused", "standby", "failed"),
    "start": ("stopped",),
}


WEIGHT = {"template": 1, "stop": 1, "standby": 3, "restore": 6, "start": 6, "pause": 2, "resume": 4}


class Choices:
    """A step's choices: all from its number and the sequence's seed, so that it is the same whichever steps
    were before it.
    """

    def __init__(self, number: int, seed: int = 0) -> None:
        self._random = Random(f"{seed}-{number}")

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


class Steps:
    """What can be asked of ramet, given who is there. `choices` are those of the step that is drawn."""

    def __init__(self, home: Home, family: Family, limits: Limits) -> None:
        self.home = home
        self.family = family
        self.limits = limits
        self.choices = Choices(0)
        self._names = 0

    def name(self, letter: str) -> str:
        """A name that nothing has had yet."""
        self._names += 1
        return f"{letter}{self._names}"

    def operation(self) -> Operation:
        """One operation, its target and its arguments."""
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
            if self.rewindable():
                options.append((5, "rewind"))
        if living > limits.guests * 2 // 3 or guests >= limits.most_guests:
            options.append((2 if guests < limits.most_guests else 12, "remove"))
        options += [(4, "compact"), (1, "work"), (1, "nothing")]
        if snapshots or family.in_state("template", "standby"):
            options += [(4, "compress"), (2, "decompress")]
        if limits.kills:
            options.append((2, "kill"))
        for verb, states in LEGAL.items():
            if family.in_state(*states):
                few = {
                    "template": 1,
                    "stop": 1,
                    "standby": 3,
                    "restore": 6,
                    "start": 6,
                    "pause": 2,
                    "resume": 4,
                }
                options.append((few[verb], verb))
        verb = self.choices.pick([verb for weight, verb in options for _ in range(weight)])
        return self._operation(verb)

    def rewindable(self) -> list[Capture]:
        """Snapshots whose source is there and may go back."""
        guests = self.family.guests
        return [
            snapshot
            for snapshot in self.family.snapshots.values()
            if snapshot.source in guests and guests[snapshot.source].state != "template"
        ]

    def _operation(self, verb: str) -> Operation:
        family, pick = self.family, self.choices.pick
        match verb:
            case "fork":
                # Twice as often of a capture than of what lives.
                candidates = [
                    *family.in_state("template", "standby") * 2,
                    *family.in_state("running", "paused"),
                ]
                if not candidates:
                    return Operation("nothing")
                source = pick(candidates)
                return Operation(
                    "fork",
                    source.id,
                    self.name("f"),
                    pick((1, 1, 2, 3)),
                    share_memory=pick((True,) * 7 + (False,)),
                )
            case "fork_snapshot":
                snapshot = pick(list(family.snapshots.values()))
                return Operation(verb, snapshot.id, self.name("f"), pick((1, 1, 2, 3)))
            case "snapshot":
                sources = family.in_state("running", "paused", "standby")
                if not sources:
                    return Operation("nothing")
                return Operation(verb, pick(sources).id, self.name("s"))
            case "rewind":
                snapshot = pick(self.rewindable())
                return Operation(verb, snapshot.source, snapshot.id)
            case "remove":
                return Operation(verb, pick(list(family.guests.values())).id)
            case "remove_snapshot":
                return Operation(verb, pick(list(family.snapshots)))
            case "export" | "import":
                taken = pick(list(family.snapshots))
                return Operation(verb, taken, self.name("i"), file=str(self.home.root / "exported"))
            case "compact":
                captures = [
                    *(self.home.instance(guest.id) for guest in family.in_state("template", "standby")),
                    *(self.home.snapshot(snapshot) for snapshot in family.snapshots),
                ]
                # The worker leaves alone what is in standby.
                captures = [capture for capture in captures if not self._in_standby(capture)]
                if not captures:
                    return Operation("nothing")
                return Operation(verb, file=str(pick(captures)))
            case "compress" | "decompress":
                chosen = pick(
                    [
                        *((snapshot, 2) for snapshot in family.snapshots),
                        *((guest.id, 1) for guest in family.in_state("template", "standby")),
                    ]
                )
                return Operation(verb, chosen[0], count=chosen[1])
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

    def pair(self) -> tuple[Operation, Operation] | None:
        """Two operations at once, of which neither must spoil the other."""
        family, pick = self.family, self.choices.pick
        if pick((False,) * 7 + (True,)) is False:
            return None
        kind = pick(
            (
                "branch+branch",
                "fork+compact",
                "fork+remove",
                "snapshot+branch",
                "rewind+branch",
                "fork+compress",
            )
        )
        room = len(family.guests) < self.limits.most_guests
        running = family.in_state("running")
        if not running or not room:
            return None
        guest = pick(running)
        branch = Operation("fork", guest.id, self.name("f"))
        if kind == "branch+branch":
            return branch, Operation("fork", guest.id, self.name("f"))
        if kind == "snapshot+branch":
            return branch, Operation("snapshot", guest.id, self.name("s"))
        if not family.snapshots:
            return None
        snapshot = pick(list(family.snapshots.values()))
        fork = Operation("fork_snapshot", snapshot.id, self.name("f"), 2)
        if kind == "fork+compact":
            return fork, Operation("compact", file=str(self.home.snapshot(snapshot.id)))
        if kind == "fork+compress":
            return fork, Operation("compress", snapshot.id, count=2)
        if kind == "rewind+branch":
            others = [snapshot for snapshot in self.rewindable() if snapshot.source != guest.id]
            return (branch, Operation("rewind", others[0].source, others[0].id)) if others else None
        return fork, Operation("remove_snapshot", snapshot.id)

    def busy(self) -> tuple[Guest, Operation] | None:
        if self.choices.pick((False,) * 9 + (True,)) is False:
            return None
        running = self.family.in_state("running")
        if not running:
            return None
        guest = self.choices.pick(running)
        if len(self.family.guests) < self.limits.most_guests and self.choices.pick((True, False)):
            return guest, Operation("fork", guest.id, self.name("f"), 2)
        if len(self.family.snapshots) < self.limits.captures:
            return guest, Operation("snapshot", guest.id, self.name("s"))
        return None
