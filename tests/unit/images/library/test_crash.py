"""A build or a prune that is killed, or finds the disk full, at any step leaves the old world or the new."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet.errors import FilesystemError
from tests.support.loop_filesystems import mounted
from tests.unit.images.library.building import DIGEST
from tests.unit.images.library.libraries import layer_of, library_in, material_of

ROOT = Path(__file__).parents[4]


def command(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"tests.unit.images.library.{program}", *map(str, arguments)]


def test_every_step_may_be_the_last(tmp_path: Path) -> None:
    done = subprocess.run(
        command("crashing", tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    steps = {(end, kind): int(count) for end, kind, count in map(str.split, done.stdout.splitlines())}
    assert set(steps) == {(end, kind) for end in ("kill", "fill") for kind in ("replace", "remove")}
    assert steps["kill", "replace"] > 30
    assert steps["kill", "remove"] > 8


@contextmanager
def built(directory: Path, pause_s: float = 0) -> Iterator[subprocess.Popen[str]]:
    words = command("building", directory, pause_s)
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.timing
def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    with built(tmp_path, 0.1) as first, built(tmp_path, 0.1) as second:
        said = [process.communicate(timeout=60)[0].splitlines() for process in (first, second)]
    assert sorted(map(len, said)) == [1, 3]
    assert {lines[-1] for lines in said} == {f"made {DIGEST}"}
    assert len(library_in(tmp_path).images()) == 1


@pytest.mark.timing
def test_a_build_whose_process_is_killed_is_done_by_the_one_that_waits(tmp_path: Path) -> None:
    with built(tmp_path, 30) as first:
        assert first.stdout is not None
        assert first.stdout.readline().startswith("opens")
        with built(tmp_path) as second:
            time.sleep(0.5)
            assert second.poll() is None
            first.kill()
            first.wait()
            said = second.communicate(timeout=60)[0].splitlines()
    assert said == ["opens layer 0", "opens layer 1", f"made {DIGEST}"]
    library = library_in(tmp_path)
    assert library.damage(library.get("app"), reads_all=True) == []


@pytest.mark.anyio
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small filesystem")
@pytest.mark.parametrize("room_kib", [40, 200, 400, 560])
async def test_a_small_filesystem_that_fills_up_leaves_what_was_there(room_kib: int) -> None:
    with mounted("-t", "tmpfs", "-o", f"size={300 + room_kib}k", "tmpfs") as place:
        library = library_in(place / "home")
        kept = await library.add(material_of([layer_of("kept", 150_000)]), name="kept", is_local=True)
        large = material_of([layer_of("a", 300_000), layer_of("b", 300_000), layer_of("c", 30_000)])
        with pytest.raises(FilesystemError, match=r"can't build the image in .*: No space left") as caught:
            await library.add(large, name="large", is_local=True)
        assert caught.value.hint == "free some space on that filesystem"
        assert library.damage(kept, reads_all=True) == []
        assert [image.digest for _, image in library.images()] == [kept.digest]
        assert list((place / "home/images").glob(".making-*")) == []
        await library.add(material_of([layer_of("small", 10_000)]), name="small", is_local=True)
