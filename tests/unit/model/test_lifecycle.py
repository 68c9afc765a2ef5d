"""The transition function: every pair of state and move, against the sentence that says which are allowed."""

from __future__ import annotations

import pytest

from ramet.errors import WrongStateError
from ramet.model.lifecycle import Move, State, transition

S, M = State, Move
NOWHERE = {S.REMOVED, S.UNREADABLE}
OPEN: dict[tuple[State, Move], State] = {
    (S.CREATED, M.BOOT): S.RUNNING,
    (S.RUNNING, M.PAUSE): S.PAUSED,
    (S.PAUSED, M.RESUME): S.RUNNING,
    (S.RUNNING, M.STANDBY): S.STANDBY,
    (S.PAUSED, M.STANDBY): S.STANDBY,
    (S.STANDBY, M.RESTORE): S.RUNNING,
    (S.RUNNING, M.TEMPLATE): S.TEMPLATE,
    (S.PAUSED, M.TEMPLATE): S.TEMPLATE,
    (S.STANDBY, M.TEMPLATE): S.TEMPLATE,
    (S.RUNNING, M.STOP): S.STOPPED,
    (S.PAUSED, M.STOP): S.STOPPED,
    (S.STANDBY, M.STOP): S.STOPPED,
    (S.FAILED, M.STOP): S.STOPPED,
    (S.STOPPED, M.START): S.RUNNING,
    **{(state, M.REWIND): S.RUNNING for state in S if state not in {S.CREATED, S.TEMPLATE, *NOWHERE}},
    **{(state, M.FAIL): S.FAILED for state in S if state not in {S.TEMPLATE, *NOWHERE}},
    **{(state, M.REMOVE): S.REMOVED for state in S if state not in NOWHERE},
}


@pytest.mark.parametrize("move", Move)
@pytest.mark.parametrize("state", State)
def test_every_move_from_every_state(state: State, move: Move) -> None:
    expected = OPEN.get((state, move))
    if expected is not None:
        assert transition(state, move, name="x") is expected
        return
    with pytest.raises(WrongStateError) as caught:
        transition(state, move, name="thing")
    assert caught.value.exit_code == 4
    assert "thing" in caught.value.message
    assert caught.value.hint or str(caught.value).endswith(f"{state} already")


@pytest.mark.parametrize("move", [Move.START, Move.RESTORE, Move.RESUME, Move.STOP])
def test_a_template_says_what_to_do_instead(move: Move) -> None:
    with pytest.raises(WrongStateError, match=r"warm is a template.*ramet fork warm"):
        transition(State.TEMPLATE, move, name="warm")
