"""Kill -9 of ramet at some points of its operations on a VMM that only a KVM with Linux guests can show.

`tests/endurance/crash` has the same for the other drivers, which need no such KVM.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

import pytest

from tests.endurance.crash.test_every_point import crash_home, crash_homes, kill_at, report, trials
from tests.endurance.crash.test_resume_on_death import goes_on

__all__ = ["crash_home", "crash_homes", "report"]
pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(1800)]

CLOUD_HYPERVISOR: Final = ("cloud-hypervisor", "builtin", "128M")
SOME: Final = 5
"""Points of each operation, others in each run: each point is a ramet process of its own, emulated."""


@pytest.mark.proves("I2")
@trials(
    [
        (CLOUD_HYPERVISOR, operation)
        for operation in ("fork", "run", "branch", "snapshot", "standby", "restore", "rewind", "pooled_fork")
    ]
)
async def test_kill_at_some_points(operation: str, crash_home: Path) -> None:
    def some(points: list[str]) -> list[int]:
        return sorted(secrets.SystemRandom().sample(range(1, len(points) + 1), SOME))

    await kill_at(crash_home, operation, some)


@trials([(CLOUD_HYPERVISOR, operation) for operation in ("template", "standby")])
async def test_the_guest_goes_on_without_another_ramet(operation: str, crash_home: Path) -> None:
    await goes_on(operation, crash_home)
