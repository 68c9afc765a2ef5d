"""What is said of measured values is right, and doesn't change from one time to the next."""

from __future__ import annotations

import random

import pytest
from benchmarks.figures import Figure, Key, Ledger, compare, percentile
from benchmarks.quantities import number, place, quantity
from hypothesis import given
from hypothesis import strategies as st


def figure(values: list[float], who: str = "a") -> Figure:
    return Figure(what="t", who=who, unit="ms", values=values)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0.005, 0.1, 0.5, 0.9, 0.95, 0.99, 0.995]))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values) or found == min(values)


def test_p99_of_a_hundred_values() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.95, 0.99)] == [50, 90, 95, 99]


def test_an_interval_holds_the_true_ratio_nearly_always() -> None:
    draw = random.Random(7)
    held = 0
    for _ in range(40):
        below = [draw.gauss(10, 1) for _ in range(25)]
        above = [draw.gauss(15, 1) for _ in range(25)]
        found = compare("r", figure(above), figure(below))
        assert found.low <= found.ratio <= found.high
        held += found.low <= 1.5 <= found.high
    assert held >= 34


def test_what_slows_both_of_a_pair_is_not_in_the_interval() -> None:
    draw = random.Random(8)
    load = [draw.uniform(1.0, 5.0) for _ in range(30)]
    below = [10 * value for value in load]
    above = [15 * value for value in load]
    paired, apart = (
        compare("r", figure(above), figure(below), paired=in_pairs) for in_pairs in (True, False)
    )
    assert paired.high - paired.low < 1e-9
    assert apart.high - apart.low > 0.1


def test_the_same_values_give_the_same_interval() -> None:
    above, below = figure([3.0, 4.0, 7.0, 5.0]), figure([2.0, 2.5, 2.2, 2.1])
    assert compare("r", above, below) == compare("r", above, below)


def test_a_ledger_compares_what_it_has() -> None:
    ledger = Ledger()
    for value in (1.0, 2.0):
        ledger.put("t", "a", value)
        ledger.put("t", "b", 2 * value, x=3)
    ledger.compare("b over a", Key("t", "b", 3), Key("t", "a"))
    ledger.compare("of nothing", Key("t", "c"), Key("t", "a"))
    assert [(ratio.name, ratio.ratio, ratio.n) for ratio in ledger.ratios] == [("b over a", 2.0, 2)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (12.345, "12.3"), (0.01234, "0.0123"), (99.96, "100"), (5, "5")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_quantities_and_places() -> None:
    assert [quantity(1.5e6, "bytes"), quantity(12, "bytes"), quantity(3.14159, "ms")] == [
        "1.5 MB",
        "12 B",
        "3.14 ms",
    ]
    assert [place(2**28, "bytes of RAM"), place(2**32, "bytes of RAM"), place(50, "depth")] == [
        "256 MiB",
        "4 GiB",
        "50",
    ]
