"""The demo: what it claims, and that nothing of it is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import living_in
from tests.support.owners import kill_both
from tests.support.shell import Shell, wait_until

pytestmark = pytest.mark.vm


@pytest.fixture
def demo(homes: Path) -> Iterator[Shell]:
    """`ramet` with the usual cache; afterwards no demo's home is in it."""
    shell = Shell(homes / "unused")
    yield shell
    shell.close()
    assert not (homes / "unused").exists()


def homes_of_demos(cache: Path) -> list[Path]:
    """The homes that demos have in that cache."""
    return list(cache.glob("demo-*"))


def test_the_claims(demo: Shell, homes: Path) -> None:
    before = set(homes_of_demos(homes.parent))
    report = demo.json("demo", "--forks", "2", "--memory", "192M", "--json")
    assert report["failed_checks"] == []
    assert len(report["forks"]) == 2
    digests = {receipt["own_digest"] for receipt in report["forks"]} | {report["original_digest"]}
    assert len(digests) == 3
    assert {receipt["inherited_digest"] for receipt in report["forks"]} == {report["original_digest"]}
    assert len({receipt["receipt"]["memory"]["inode"] for receipt in report["forks"]}) == 1
    assert report["in_fact_bytes"] < report["if_copied_bytes"]
    assert set(homes_of_demos(homes.parent)) <= before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_nothing(demo: Shell, homes: Path, number: int, code: int) -> None:
    process = demo.start("demo", "--forks", "1")
    mine = f"demo-{process.pid}-*"
    wait_until(lambda: any(living_in(home) for home in homes.parent.glob(mine)))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert list(homes.parent.glob(mine)) == []


@pytest.mark.timing
def test_what_a_killed_one_left_goes_with_the_next(demo: Shell, homes: Path) -> None:
    process = demo.start("demo", "--forks", "1")
    mine = f"demo-{process.pid}-*"
    wait_until(lambda: any(living_in(home) for home in homes.parent.glob(mine)))
    kill_both(process)
    process.communicate(timeout=60)
    [left] = homes.parent.glob(mine)
    assert living_in(left)
    following = demo.start("demo", "--forks", "1")
    wait_until(lambda: not left.exists())
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=60)
    assert living_in(left) == []  # a zombie has no working directory
