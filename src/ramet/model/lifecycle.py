"""The life of an instance: its states, and the one function that may change them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from ramet.errors import WrongStateError
from ramet.surface import exported


@exported
class State(StrEnum):
    """The state of an instance."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STANDBY = "standby"
    TEMPLATE = "template"
    STOPPED = "stopped"
    FAILED = "failed"
    REMOVED = "removed"
    UNREADABLE = "unreadable"
    """The record can't be read. The state is shown but never stored, and ramet leaves the instance alone."""


class Move(StrEnum):
    """A request that changes the state of an instance."""

    BOOT = "boot"
    PAUSE = "pause"
    RESUME = "resume"
    STANDBY = "standby"
    RESTORE = "restore"
    REWIND = "rewind"
    TEMPLATE = "template"
    STOP = "stop"
    START = "start"
    FAIL = "fail"
    REMOVE = "remove"


_S = State
_ALIVE: Final = frozenset({_S.RUNNING, _S.PAUSED})
_ANY: Final = frozenset(State) - {_S.REMOVED, _S.UNREADABLE}

_MOVES: Final[dict[Move, tuple[frozenset[State], State]]] = {
    Move.BOOT: (frozenset({_S.CREATED}), _S.RUNNING),
    Move.PAUSE: (frozenset({_S.RUNNING}), _S.PAUSED),
    Move.RESUME: (frozenset({_S.PAUSED}), _S.RUNNING),
    Move.STANDBY: (_ALIVE, _S.STANDBY),
    Move.RESTORE: (frozenset({_S.STANDBY}), _S.RUNNING),
    Move.REWIND: (_ALIVE | {_S.STANDBY, _S.STOPPED, _S.FAILED}, _S.RUNNING),
    Move.TEMPLATE: (_ALIVE | {_S.STANDBY}, _S.TEMPLATE),
    Move.STOP: (_ALIVE | {_S.STANDBY, _S.FAILED}, _S.STOPPED),
    Move.START: (frozenset({_S.STOPPED}), _S.RUNNING),
    Move.FAIL: (_ANY - {_S.TEMPLATE}, _S.FAILED),
    Move.REMOVE: (_ANY, _S.REMOVED),
}

_DONE: Final[dict[Move, str]] = {
    Move.BOOT: "booted",
    Move.PAUSE: "paused",
    Move.RESUME: "resumed",
    Move.STANDBY: "put into standby",
    Move.RESTORE: "restored",
    Move.REWIND: "rewound",
    Move.TEMPLATE: "made a template",
    Move.STOP: "stopped",
    Move.START: "started",
    Move.FAIL: "failed",
    Move.REMOVE: "removed",
}

_NEXT_STEP: Final[dict[State, str]] = {
    _S.CREATED: "it is still being made: try again shortly",
    _S.RUNNING: "it is running already",
    _S.PAUSED: "`ramet resume {name}` first",
    _S.STANDBY: "`ramet restore {name}` first",
    _S.TEMPLATE: "a template is fork-only: `ramet fork {name}` makes a running copy",
    _S.STOPPED: "`ramet start {name}` first",
    _S.FAILED: "`ramet logs {name}` says why; `ramet stop {name}` then `ramet start {name}` starts it cold",
    _S.REMOVED: "it is gone",
    _S.UNREADABLE: "`ramet ps` says why",
}


_ALREADY: Final = {
    _S.RUNNING: "`ramet inspect {name}` says what it does",
    _S.PAUSED: "`ramet resume {name}` resumes it",
    _S.STANDBY: "`ramet restore {name}` restores it",
    _S.TEMPLATE: _NEXT_STEP[_S.TEMPLATE],
    _S.STOPPED: "`ramet start {name}` starts it cold",
}


def next_step(state: State, name: str) -> str:
    """Return a hint for an instance that is in `state`."""
    return _NEXT_STEP[state].format(name=name)


def transition(state: State, move: Move, *, name: str) -> State:
    """Return the state after `move`. No other function derives a state from another.

    Raises `WrongStateError`, which names the instance, its state and the next step, when `state` doesn't
    allow the move.
    """
    allowed, result = _MOVES[move]
    if state not in allowed:
        if state is result:
            raise WrongStateError(
                f"{name} is {article(state)} already", hint=_ALREADY.get(state, "").format(name=name) or None
            )
        raise WrongStateError(
            f"{name} is {article(state)}: it can't be {_DONE[move]}", hint=next_step(state, name)
        )
    return result


def article(state: State) -> str:
    """Return a state as it stands in a sentence: `a template`, but `running`."""
    return "a template" if state is State.TEMPLATE else state.value
