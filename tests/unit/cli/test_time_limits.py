"""One meaning for every time limit: finite and more than 0, or none."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from ramet.errors import UsageError
from ramet.units import LONGEST_TIME_LIMIT_S, parse_time_limit
from tests.support.shell import Shell

_REFUSED = ("inf", "-inf", "nan", "0", "-1", "1e308", "1e400", "0.0")


@pytest.mark.parametrize("value", _REFUSED)
def test_no_command_gets_a_limit_that_is_none(ramet: Shell, value: str) -> None:
    """Under `exec` ramet's own trouble is 125, as with Docker."""
    error = ramet.json("exec", f"--timeout={value}", "--json", "nosuch", "true", code=125)["error"]
    assert (error["code"], "--timeout" in error["message"]) == ("usage", True)


@pytest.mark.vm
def test_no_stop_gets_a_limit_that_is_none(guest: Shell) -> None:
    for value in _REFUSED:
        if float(value) != 0.0:  # that is: kill it at once
            assert (
                guest.json("stop", f"--timeout={value}", "--json", "box", code=2)["error"]["code"] == "usage"
            )
    assert guest.json("inspect", "box", "--json")["state"] == "running"


@pytest.mark.parametrize(
    "value",
    [
        *_REFUSED,
        *map(float, _REFUSED),
        "",
        "soon",
        "1 s",
        True,
        False,
        b"1",
        [1],
        timedelta(seconds=1),
        10**400,
    ],
    ids=repr,
)
def test_what_is_no_time_limit_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="timeout of exec") as caught:
        parse_time_limit(value, what="timeout of exec")
    assert caught.value.hint


@pytest.mark.parametrize(
    "value", [1, 0.001, "1.5", " 2 ", "1e3", LONGEST_TIME_LIMIT_S, Decimal(3), Fraction(1, 2)], ids=repr
)
def test_what_is_one_is_a_number_of_seconds(value: Any) -> None:
    seconds = parse_time_limit(value)
    assert isinstance(seconds, float)
    assert math.isclose(seconds, float(value))
    assert parse_time_limit(None) is None
