"""A VMM's program is asked for its version once, and again when it is another one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from ramet.drivers import versions
from ramet.drivers.versions import ask_version
from ramet.errors import UnavailableError
from ramet.system import outside

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that were run, with a cache of the test's own."""
    ran: list[str] = []
    run = outside.run_async

    async def noted(command: Sequence[str], *, limit_s: float) -> outside.Outcome:
        ran.append(command[0])
        return await run(command, limit_s=limit_s)

    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "cache with a space"))
    monkeypatch.setattr(outside, "run_async", noted)
    return ran


async def version_of(program: Path, oldest: tuple[int, int] = (1, 0)) -> str:
    pattern = r"(\d+\.\d+(?:\.\d+)?)"
    return await ask_version("sh", str(program), pattern, oldest=oldest, install="-", setting="-")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A real program that tells a version: a copy, that it can be changed."""
    found = shutil.which("bash")
    if found is None:
        pytest.skip("there is no bash here")
    return Path(shutil.copy(Path(found).resolve(), tmp_path / "a program"))


async def test_it_is_asked_once_and_again_when_it_is_another_file(program: Path, asked: list[str]) -> None:
    first = await version_of(program)
    assert await version_of(program) == first
    assert len(asked) == 1
    os.utime(program, ns=(1, 1))
    assert await version_of(program) == first
    assert len(asked) == 2
    other = program.with_name("other")
    shutil.copy2(program, other)
    other.replace(program)
    await version_of(program)
    assert len(asked) == 3


async def test_what_was_told_before_is_held_against_what_is_needed(program: Path, asked: list[str]) -> None:
    await version_of(program)
    with pytest.raises(UnavailableError, match="needs 99"):
        await version_of(program, oldest=(99, 0))
    assert len(asked) == 1


async def test_a_script_is_asked_each_time(tmp_path: Path, asked: list[str]) -> None:
    script = tmp_path / "script"
    for version in ("1.2.3", "4.5.6"):
        script.write_text(f"#!/bin/sh\necho {version}\n")
        script.chmod(0o755)
        assert await version_of(script) == version
    assert len(asked) == 2


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"/x": 1}'], ids=["nothing", "half of it", "something else"]
)
async def test_a_cache_that_cannot_be_read_costs_time_alone(
    program: Path, asked: list[str], content: bytes
) -> None:
    first = await version_of(program)
    versions._file().write_bytes(content)
    assert await version_of(program) == first
    assert await version_of(program) == first
    assert len(asked) == 2
