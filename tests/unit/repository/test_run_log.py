"""The line that a counted run of tests leaves in docs/internals/test-runs.md."""

from __future__ import annotations

from pathlib import Path

from tools import run_log

GREEN = "...\n=========== 2957 passed, 73 skipped in 583.25s (0:09:43) ============\n"
RED = """\
FAILED tests/a.py::test_b[1|2] - assert 1
ERROR tests/a.py::test_c
1 failed, 3 passed, 1 error in 3.10s
"""


def test_counts() -> None:
    assert run_log.read(GREEN, 0) == run_log.Run(2957, 0, 73, ())
    assert run_log.read(GREEN + RED, 1) == run_log.Run(
        2960, 2, 73, ("tests/a.py::test_b[1|2]", "tests/a.py::test_c")
    )
    assert run_log.read("make: *** [Makefile:1: test] Error 1\n", 2) == run_log.Run(0, 1, 0, ("exit code 2",))


def test_a_line_a_run(tmp_path: Path) -> None:
    page = tmp_path / "runs.md"
    for output, code in ((GREEN, 0), (RED, 1)):
        run_log.append("`make test`", run_log.read(output, code), 600.4, file=page)
    head, *rest = page.read_text().split("| --- | --- | --- | --- | --- | --- | --- | --- |\n")
    assert head.startswith("# ")
    green, red = rest[0].splitlines()
    assert green.endswith("| `make test` | 2957 | 0 | 73 | 600 | none |")
    assert red.endswith(r"| 3 | 2 | 0 | 600 | tests/a.py::test_b[1\|2], tests/a.py::test_c |")
