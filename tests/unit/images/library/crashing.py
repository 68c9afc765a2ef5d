"""A program that builds and prunes in children, each of which is killed, or finds the disk full, at another
system call that changes files; and sees what has to be so afterwards.

    python -m tests.unit.images.library.crashing DIRECTORY
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from ramet.errors import FilesystemError
from ramet.images.erofs import blob
from ramet.images.library.library import Library
from tests.unit.images.library.libraries import SHARED_FROM, layer_of, library_in, material_of

EVENTS = frozenset(
    {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.utime", "os.truncate", "shutil.rmtree"}
)
OLD = [layer_of("base", 90_000), layer_of("old", 20_000)]
NEW = [OLD[0], layer_of("second", 80_000), layer_of("new", 20_000)]
MOST_STEPS = 400
ALLOCATING = frozenset({"os.rename", "os.mkdir"})
DONE, FULL, SURVIVED, WRONG = range(4)
"""How a child ended: `SURVIVED` is a full disk that prevented nothing."""


def add(library: Library, layers: list[bytes], name: str) -> None:
    anyio.run(lambda: library.add(material_of(layers), name=name, is_local=True))


def replace(library: Library) -> None:
    add(library, NEW, "app")


def remove(library: Library) -> None:
    anyio.run(library.remove, "app")
    anyio.run(library.prune)


WORK: dict[str, Callable[[Library], None]] = {"replace": replace, "remove": remove}


def ended_at(step: int, work: Callable[[], None], end: Callable[[], None]) -> bool:
    """Do the work in a child and call `end` from that step on. False if the work has fewer steps."""
    if not (child := os.fork()):
        done = 0
        write = os.pwrite

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal done
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
            if event in EVENTS or writes:
                done += 1
                if done >= step and (writes or event in ALLOCATING or end is kill):
                    end()

        def counted(*arguments: Any) -> int:
            nonlocal done
            done += end is fill  # what is killed in the middle of unpublished bytes leaves just these
            if end is fill and done >= step:
                end()
            return write(*arguments)

        os.pwrite = counted
        sys.addaudithook(count)
        try:
            work()
        except FilesystemError as error:
            is_right = error.number == errno.ENOSPC and "No space left" in error.message and error.hint
            os._exit(FULL if is_right else WRONG)
        except BaseException:
            traceback.print_exc()
            os._exit(WRONG)
        os._exit(DONE if done < step else SURVIVED)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) != WRONG, f"the work failed in another way, step {step}"
    return os.WEXITSTATUS(status) != DONE


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check(directory: Path, kind: str, step: int, *, is_full: bool) -> None:
    """See that the old world or the new one is there, that the next build works, and that nothing is left."""
    library = library_in(directory)
    where = f"{kind}, {'disk full' if is_full else 'killed'} at step {step}"
    assert not is_full or not list((directory / "images").glob(".making-*")), where
    for names, image in library.images():
        assert library.damage(image, reads_all=True) == [], where
        assert len(names) < 2, where
    found = library.find("app")
    layers = None if found is None else len(found.record.layers)
    assert layers in ({2, 3} if kind == "replace" else {2, None}), where
    other = library.get("other")
    assert library.damage(other, reads_all=True) == [], where
    add(library, NEW, "app")
    assert library.damage(library.get("app"), reads_all=True) == [], where
    assert not list((directory / "images").glob(".making-*")), where
    anyio.run(library.prune)
    wanted = {f"{base.digest}.erofs" for _, image in library.images() for base in image.bases}
    assert {path.name for path in (directory / "images/blobs").iterdir()} == wanted, where
    assert not list((directory / "images").rglob(".*")), where
    assert {names[0].name for names, _ in library.images()} == {"app:latest", "other:latest"}, where


def main(directory: Path) -> None:
    blob.SHARED_FROM_BYTES = SHARED_FROM  # type: ignore[misc]
    start = directory / "start"
    add(library_in(start), OLD, "app")
    add(library_in(start), OLD[:1], "other")
    for end in (kill, fill):
        for kind, work in WORK.items():
            # A full disk is tried at every third step: what a kill leaves is the more varied.
            for step in range(1, MOST_STEPS, 1 if end is kill else 3):
                place = directory / "place"
                shutil.copytree(start, place)
                was_ended = ended_at(step, lambda: work(library_in(place)), end)  # noqa: B023
                check(place, kind, step, is_full=end is fill)
                shutil.rmtree(place)
                if not was_ended:
                    print(end.__name__, kind, step, flush=True)
                    break
            else:
                raise AssertionError("the work has too many steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
