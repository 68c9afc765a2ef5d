"""The reason that tells of a clock which wasn't corrected: it goes when the clock has been."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ramet.engine.agent import session

pytestmark = pytest.mark.anyio


class Row(msgspec.Struct, frozen=True):
    """As much of a record as this is about."""

    id: str
    vmm: str
    reason: str | None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{session._CLOCK}: the guest didn't answer", None),
        ("its clock wasn't put right after something: an older ramet's words", None),
        ("its guest rebooted", "its guest rebooted"),
        (None, None),
    ],
)
async def test_a_reason_of_that_kind_goes(
    before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def corrected(*_: object) -> None:
        return None

    rows = {"x": Row("x", "its VMM", before)}

    def change(row_id: str, function: Any) -> Row:
        rows[row_id] = function(rows[row_id])
        return rows[row_id]

    monkeypatch.setattr(session, "correct_clock", corrected)
    context: Any = SimpleNamespace(store=SimpleNamespace(change=change))
    record: Any = rows["x"]
    await session.require_clock(context, record)
    assert rows["x"].reason == after
