"""Each invariant of docs/concepts/invariants.md is defined once, and has a test that proves it."""

from __future__ import annotations

import re

import pytest
from tools.generate_invariants import INVARIANTS, proofs

from tests.support.copied_packages import ROOT

PAGE = (ROOT / "docs" / "concepts" / "invariants.md").read_text()


def test_each_is_defined_once_and_lists_its_tests() -> None:
    """That the lists are up to date is `test_generated.py`'s."""
    assert re.findall(r"^## (I\d+): ", PAGE, re.MULTILINE) == list(INVARIANTS)
    assert re.findall(r"<!-- tests of (I\d+) -->", PAGE) == list(INVARIANTS)


def test_a_proof_names_an_invariant() -> None:
    assert set(proofs()) == set(INVARIANTS)


@pytest.mark.parametrize("name", INVARIANTS)
def test_each_is_proved_by_every_merge(name: str) -> None:
    assert [proof for proof in proofs()[name] if not proof.is_deep], f"nothing in `make test` proves {name}"
