"""The end of a main process, read from the console of a guest that is gone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ramet.engine.vmm.main_end import MainEnd, main_end
from ramet.model.container import MainProcess
from ramet.model.record import RunningVmm
from ramet.paths import CONSOLE_LOG
from ramet.system import process_ref
from tests.support.stored_homes import record

LINE = b"\nramet: the main process ended: "


def end(directory: Path, console: bytes | None, *, start: int = 0, main: bool = True) -> MainEnd | None:
    if console is not None:
        (directory / CONSOLE_LOG).write_bytes(console)
    vmm = RunningVmm(process=process_ref.this_process(), mem_device=0, mem_inode=0, console_start=start)
    instance = msgspec.structs.replace(
        record("it", "1" * 12), main=MainProcess(argv=("x",)) if main else None, vmm=vmm
    )
    context: Any = SimpleNamespace(directory=lambda _: directory)
    return main_end(context, instance)


@pytest.mark.parametrize(
    ("console", "expected"),
    [
        (LINE + b"exit 0\r\n", MainEnd(0, "its main process ended with exit code 0")),
        (LINE + b"exit 255\n", MainEnd(255, "its main process ended with exit code 255")),
        (
            LINE + b"signal 9\n[7] down\n",
            MainEnd(137, "its main process was ended by signal 9"),
        ),
        (LINE + b"exit 1\nmore" + LINE + b"exit 2\n", MainEnd(2, "its main process ended with exit code 2")),
        (b"no line", None),
        (b"", None),
        (b"a program says: ramet: the main process ended: exit 3\n", None),
        (LINE + b"exit 1000\n", None),
        (LINE + b"exit -1\n", None),
        (LINE + b"exit", None),
    ],
)
def test_the_last_line_counts(console: bytes, expected: MainEnd | None, tmp_path: Path) -> None:
    assert end(tmp_path, console) == expected


def test_an_earlier_vmms_line_is_not_this_ones(tmp_path: Path) -> None:
    earlier = LINE + b"exit 4\n"
    assert end(tmp_path, earlier + b"booting\n", start=len(earlier)) is None
    assert end(tmp_path, earlier + LINE + b"exit 5\n", start=len(earlier)) == MainEnd(
        5, "its main process ended with exit code 5"
    )


def test_a_built_in_images_guest_has_none(tmp_path: Path) -> None:
    assert end(tmp_path, LINE + b"exit 4\n", main=False) is None


def test_a_guest_that_writes_much_cannot_hide_it(tmp_path: Path) -> None:
    assert end(tmp_path, b"x" * 10_000_000 + LINE + b"exit 6\n") == MainEnd(
        6, "its main process ended with exit code 6"
    )


def test_without_a_vmm_there_is_no_end(tmp_path: Path) -> None:
    """In standby: what the console has is of VMMs that are long gone."""
    end(tmp_path, LINE + b"exit 4\n")
    instance = msgspec.structs.replace(record("it", "1" * 12), main=MainProcess(argv=("x",)))
    context: Any = SimpleNamespace(directory=lambda _: tmp_path)
    assert main_end(context, instance) is None


def test_without_a_console_there_is_no_end(tmp_path: Path) -> None:
    assert end(tmp_path / "missing", None) is None
