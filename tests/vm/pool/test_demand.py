"""How many warm VMMs of what: the sums, without any."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.engine.pool.demand import Demand

HALF_LIFE_S = 100.0


def demand(**asked: int) -> Demand:
    made = Demand(HALF_LIFE_S)
    for name, count in asked.items():
        made.add(name, count, 0.0)
    return made


def test_the_largest_number_of_lately_is_wanted_and_halves() -> None:
    made = demand(a=8)
    assert made.wishes(0.0) == {"a": 8}
    assert made.wishes(HALF_LIFE_S) == {"a": 8}
    assert made.wishes(2 * HALF_LIFE_S) == {"a": 4}
    made.add("a", 1, 2 * HALF_LIFE_S)
    assert made.wishes(3 * HALF_LIFE_S) == {"a": 4}, "one that is asked for later doesn't make it smaller"
    assert made.wishes(5 * HALF_LIFE_S) == {"a": 1}
    assert made.wishes(7 * HALF_LIFE_S) == {}
    assert made.changes_in_s(0.0) is None, "forgotten"


def test_forks_one_after_the_other_add_up_for_a_second() -> None:
    made = Demand(HALF_LIFE_S)
    for tenth in range(10):
        made.add("a", 1, tenth / 10)
    assert made.wishes(1.0) == {"a": 10}
    made.add("b", 1, 0.0)
    made.add("b", 1, 5.0)
    assert made.wishes(5.0)["b"] == 1


def test_a_budget_is_shared_by_demand_and_the_latest_always_has_one() -> None:
    made = demand(large=8, small=4)
    assert made.shares(6, 0.0) == {"large": 4, "small": 2}
    assert made.shares(100, 0.0) == {"large": 8, "small": 4}
    made.add("new", 1, 1.0)
    assert made.shares(1, 1.0) == {"large": 0, "small": 0, "new": 1}
    made.forget("large")
    assert made.shares(6, 1.0) == {"small": 4, "new": 1}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), max_size=6),
    st.integers(0, 40),
    st.floats(0.0, 1000.0),
)
def test_shares_keep_the_budget_and_waste_none_of_it(
    asked: dict[str, int], budget: int, later_s: float
) -> None:
    made = demand(**asked)
    wishes = made.wishes(later_s)
    shares = made.shares(budget, later_s)
    assert sum(shares.values()) == min(budget, sum(wishes.values()))
    assert all(0 <= shares[name] <= wishes[name] for name in wishes)
    changes_s = made.changes_in_s(later_s)
    if changes_s is None:
        assert wishes == {}
    else:
        assert made.wishes(later_s + changes_s + 0.01) != wishes
        assert math.isfinite(changes_s)


def test_nothing_asked_for_is_nothing_wanted() -> None:
    made = Demand()
    assert made.shares(4, 0.0) == {}
    assert made.changes_in_s(0.0) is None
    made.forget("never heard of")


@pytest.mark.parametrize("count", [1, 3])
def test_wishes_change_when_they_are_said_to(count: int) -> None:
    made = demand(a=count)
    changes_s = made.changes_in_s(0.0)
    assert changes_s is not None
    assert made.wishes(changes_s - 0.01) == {"a": count}
    assert made.wishes(changes_s + 0.01).get("a", 0) == count - 1
