"""Who has to be alone waits for those that are there, and nobody comes in meanwhile."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import durations, side_by_side


def test_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(side_by_side._VARIABLE, str(tmp_path))
    order: list[str] = []

    def enter(name: str, *, alone: bool) -> None:
        with side_by_side._turn(alone=alone):
            order.append(name)

    hermit = threading.Thread(target=enter, args=("alone",), kwargs={"alone": True}, daemon=True)
    newcomer = threading.Thread(target=enter, args=("newcomer",), kwargs={"alone": False}, daemon=True)
    with side_by_side._turn(alone=False):
        enter("company", alone=False)
        hermit.start()
        while is_free(tmp_path / "gate"):
            hermit.join(0.01)
        newcomer.start()
        newcomer.join(0.2)
        assert order == ["company"]
    for thread in (hermit, newcomer):
        thread.join(10)
    assert order == ["company", "alone", "newcomer"]


def is_free(lock: Path) -> bool:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_the_group_that_takes_longest_is_first_and_stays_as_it_is() -> None:
    nodeids = [
        "tests/a.py::one",
        "tests/b.py::one[x]",
        "tests/a.py::two",
        "tests/b.py::one[y]",
        "tests/c.py::new",
    ]
    known = {"a.py::one": 1.0, "a.py::two": 1.5, "b.py::one": 2.0}
    assert side_by_side.in_order(nodeids, known) == [1, 3, 0, 2, 4]
    assert side_by_side.in_order(nodeids, {}) == [0, 2, 1, 3, 4]


def test_some_files_are_several_groups() -> None:
    contract = "tests/contract/test_life.py"
    assert side_by_side.group_of(f"{contract}::test_a[qemu-builtin-x]") == f"{contract}[qemu-builtin]"
    assert side_by_side.group_of(f"{contract}::test_b[y-qemu-builtin]") == f"{contract}[qemu-builtin]"
    assert side_by_side.group_of(f"{contract}::test_c") == contract
    assert side_by_side.group_of("tests/api/test_life.py::test_c[qemu]") == "tests/api/test_life.py"
    for name in side_by_side._SPLIT:
        assert list(Path(__file__).parents[2].rglob(name)), f"{name} isn't there any more"


def test_durations_are_means_and_outlive_a_move() -> None:
    known = {"a.py::one": 3.0, "a.py::two": 4.0, "gone.py::x": 9.0}
    measured = {"tests/x/a.py::one[1]": 1.0, "tests/x/a.py::one[2]": 2.0, "tests/b.py::quick": 0.01}
    merged = durations.merged(known, measured, {"a.py", "b.py"})
    assert merged == {"a.py::one": 1.5, "a.py::two": 4.0}
    assert durations.as_text(merged) == '{\n  "a.py::two": 4.0,\n  "a.py::one": 1.5\n}\n'


def test_a_failure_is_written_down_at_once(tmp_path: Path) -> None:
    """Whoever ends a run in the middle knows by it whether one had failed."""
    (tmp_path / "test_it.py").write_text("def test_a(): pass\ndef test_b(): assert False\n")
    words = ["-q", "-p", "tests.side_by_side", "-p", "no:cacheprovider", "--rootdir", os.fspath(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-c", os.devnull, os.fspath(tmp_path)],
        env={**os.environ, side_by_side._FAILED_VARIABLE: os.fspath(tmp_path / "failed")},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert (tmp_path / "failed").read_text() == "test_it.py::test_b\n"


@pytest.mark.parametrize(
    ("expression", "marks", "ignored"),
    [
        ("not vm and not slow and not deep", "[pytest.mark.vm, pytest.mark.anyio]", True),
        ("not vm", "pytest.mark.vm", True),
        ("not vm", "[pytest.mark.anyio, pytest.mark.timeout(60)]", False),
        ("not deep", "pytest.mark.vm", False),
        ("not vm or core", "pytest.mark.vm", False),
    ],
)
def test_a_file_that_needs_vms_is_not_imported_for_a_run_without(
    tmp_path: Path, expression: str, marks: str, ignored: bool
) -> None:
    file = tmp_path / "test_file.py"
    file.write_text(f"import pytest\n\npytestmark = {marks}\n\n\ndef test_it() -> None:\n    pass\n")
    config = SimpleNamespace(option=SimpleNamespace(markexpr=expression))
    assert bool(side_by_side.pytest_ignore_collect(file, config)) is ignored  # type: ignore[arg-type]
    assert side_by_side.pytest_ignore_collect(tmp_path / "conftest.py", config) is None  # type: ignore[arg-type]
