"""The deep tier's parts: what each runs, the paths whose change calls for it, and about how long it takes.

In the order in which they are run where there isn't time for all: the riskiest first. Of the deep tests those
that are marked `alone` are in `measured`, the others in the part that names their folder, else in
`behaviours`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Part:
    """`tests` are files and folders of which the deep tests are run; `paths` call for it, beside those. A
    path that ends with `/` stands for all that is below. `alone`: one test after another, and only what is
    marked so. `rest`: only what is in no other part. `before` is a command that makes what the tests would be
    skipped without.
    """

    name: str
    tests: tuple[str, ...]
    paths: tuple[str, ...]
    minutes: float
    alone: bool = False
    rest: bool = False
    before: tuple[str, ...] = ()

    def pytest_words(self) -> tuple[str, ...]:
        """The arguments that have pytest run it."""
        if self.alone:
            return ("-n", "0", "-m", "deep and alone", *self.tests)
        ignored = [f"--ignore={path}" for path in named(PARTS)] if self.rest else []
        return (*SIDE_BY_SIDE, "-m", "deep and not alone", *self.tests, *ignored)

    def called_for_by(self, changed: Iterable[str]) -> bool:
        """Whether one of the changed files, by their paths from the root, is of its paths."""
        if self.rest:
            changed = [file for file in changed if not any(covers(path, file) for path in named(PARTS))]
        own = self.paths if self.alone else (*self.tests, *self.paths)
        return any(covers(path, file) for file in changed for path in own)


def covers(path: str, file: str) -> bool:
    """Whether `file` is `path`, or below it."""
    return file == path or file.startswith(path.rstrip("/") + "/")


def named(parts: Iterable[Part]) -> list[str]:
    """The tests that parts name, other than the two that take what the marks or the others leave them."""
    return [path for part in parts if not (part.alone or part.rest) for path in part.tests]


SIDE_BY_SIDE: Final = ("-n", "auto", "--maxprocesses", "8")

_ENGINE: Final = ("src/ramet/engine/", "src/ramet/system/", "src/ramet/store/")
_BYTES: Final = ("src/ramet/memory/", "src/ramet/disk/")
_GUEST: Final = ("src/ramet/guest/", "src/ramet/images/", "src/ramet/drivers/")

SEED_CASE: Final = Part(
    "seed-case",
    ("tests/endurance/emulated_host/test_seed_case.py",),
    (*_ENGINE, *_BYTES, *_GUEST, "tests/endurance/linux_on_kvm/"),
    6,
)
"""Run by continuous integration whatever has changed."""

PARTS: Final = (
    SEED_CASE,
    Part("crash", ("tests/endurance/crash",), (*_ENGINE, *_BYTES, "src/ramet/drivers/"), 6),
    Part(
        "emulated-host",
        (
            "tests/endurance/emulated_host/test_emulated_host.py",
            "tests/endurance/emulated_host/test_machine.py",
        ),
        (
            *_BYTES,
            *_GUEST,
            "src/ramet/engine/",
            "src/ramet/testing/",
            "tests/contract/",
            "tests/endurance/linux_on_kvm/",
            "tests/endurance/emulated_host/",
        ),
        18,
    ),
    Part("hunt", ("tests/endurance/hunt",), (*_ENGINE, *_BYTES, "src/ramet/drivers/"), 3),
    Part("measured", ("tests",), (*_ENGINE, *_BYTES, *_GUEST, "benchmarks/"), 4, alone=True),
    Part("behaviours", ("tests",), ("src/ramet/", "examples/"), 8, rest=True),
    Part(
        "users",
        ("tests/platform/not_root", "tests/platform/environments"),
        (*_ENGINE, "src/ramet/api/", "src/ramet/cli/", "tools/setup.sh"),
        5,
    ),
    Part("fuzz", ("tests/adversarial/fuzz",), ("src/ramet/guest/",), 3),
    Part("releases", ("tests/platform/qemu_releases",), ("src/ramet/drivers/", "src/ramet/memory/"), 8),
    Part(
        "wheel",
        ("tests/platform/test_wheel.py",),
        (
            "pyproject.toml",
            "tools/build_wheel.py",
            "requirements-wheel.lock",
            "src/ramet/guest/agent/",
            "src/ramet/guest/probe/",
        ),
        3,
        before=("make", "wheel"),
    ),
    Part(
        "site",
        ("tests/platform/test_site.py",),
        (
            "docs/",
            "examples/",
            "requirements-docs.lock",
            "tools/check_site.py",
            "src/ramet/api/",
            "src/ramet/model/",
            "src/ramet/errors.py",
            "src/ramet/sync.py",
        ),
        1,
        before=("make", ".venv/.done-docs"),
    ),
)
