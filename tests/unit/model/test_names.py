"""Names and references: exact name, then id, then a unique prefix of an id."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import NotFoundError, UsageError
from ramet.model.names import check_name, fork_names, invent_name, new_id, resolve


class One(NamedTuple):
    id: str
    name: str


FAMILY = [One("aaaa11112222", "warm"), One("aaaa33334444", "cold"), One("bbbb55556666", "aaaa11112222x")]


@pytest.mark.parametrize(
    ("reference", "name"),
    [("warm", "warm"), ("aaaa33334444", "cold"), ("bbbb", "aaaa11112222x"), ("aaaa1", "warm")],
)
def test_exact_name_then_id_then_prefix(reference: str, name: str) -> None:
    assert resolve(reference, FAMILY).name == name


def test_a_name_wins_over_an_id() -> None:
    assert resolve("aaaa33334444", [*FAMILY, One("cccc00000000", "aaaa33334444")]).id == "cccc00000000"


def test_an_ambiguous_prefix_names_the_candidates() -> None:
    with pytest.raises(UsageError, match=r"warm.*cold"):
        resolve("aaaa", FAMILY)


def test_a_short_prefix_is_no_reference() -> None:
    with pytest.raises(NotFoundError):
        resolve("bbb", FAMILY)


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(NotFoundError, match="did you mean warm") as caught:
        resolve("wram", FAMILY)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a/b", "x" * 64, "ä", "a\n", "a\0"])
def test_illegal_names(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


@given(st.integers(1, 40), st.sets(st.integers(1, 50)))
def test_unnamed_forks_take_free_numbers(count: int, taken: set[int]) -> None:
    used = {f"warm-{number}" for number in taken}
    names = fork_names(count, name=None, source="warm", taken=used)
    assert len(set(names)) == count
    assert not used & set(names)


def test_named_forks() -> None:
    assert fork_names(1, name="x", source="warm", taken=[]) == ["x"]
    assert fork_names(3, name="x", source="warm", taken=["x-2"]) == ["x-1", "x-2", "x-3"]


def test_invented_names_are_legal_and_free() -> None:
    taken: set[str] = set()
    for _ in range(400):
        name = check_name(invent_name(taken))
        assert name not in taken
        taken.add(name)


def test_ids_are_distinct() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000


@given(st.text("ab-", min_size=1, max_size=63), st.integers(1, 120))
def test_forks_of_a_long_line_have_legal_names(source: str, count: int) -> None:
    names = fork_names(count, name=None, source=f"x{source}"[:63], taken={f"x{source}"[:63]})
    assert len({check_name(name) for name in names}) == count
    assert f"x{source}"[:63] not in names


def test_a_chosen_name_must_have_room_for_its_numbers() -> None:
    assert fork_names(1, name="x" * 63, source="warm", taken=()) == ["x" * 63]
    with pytest.raises(UsageError):
        fork_names(2, name="x" * 62, source="warm", taken=())
