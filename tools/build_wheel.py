"""Builds ramet's wheel with the guests' agents and the probe in it. The same source gives the same bytes,
wherever it is.

The cross-compiler and the build backend come from `requirements-wheel.lock`, hashes checked, into
`.venv-wheel`, which is made when it is missing or the lock has changed. `docs/internals/packaging.md` says
what makes the bytes the same.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = ROOT / "requirements-wheel.lock"
TOOLCHAIN: Final = ROOT / ".venv-wheel"
PROGRAMS: Final = ("agent", "probe")
"""The guest programs, each a directory of `src/ramet/guest` with a Makefile."""
BUILD_TIMEOUT_S: Final = 600
"""A first build compiles a C library for each architecture: two minutes on two cores."""
DATE_S: Final = 315_532_800
"""1980-01-01 in seconds since 1970: the earliest that a zip archive can say. With a commit's date the same
source would give other bytes after each commit.
"""
BACKEND: Final = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1], {"--build-option": ["--compression=stored"]}), file=sys.stderr)
"""
"""The build backend's hook (PEP 517). Stored, not deflated: what deflate makes depends on the zlib."""

MISLEADING: Final = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHONPATH", "PYTHONHOME"}
"""Variables of whoever calls this that would change what a step does."""


class BuildError(Exception):
    """A step failed. Nothing was written to where the wheel should go."""


def main(words: list[str]) -> int:
    """Prints the wheel's SHA-256 and path. Returns 0, or 1 with a failed step's output on standard error."""
    parser = argparse.ArgumentParser(description="Build ramet's wheel, with its guest programs in it.")
    parser.add_argument("--source", type=Path, default=ROOT, metavar="DIR", help="the tree to build")
    parser.add_argument(
        "--into", type=Path, default=ROOT / "dist", metavar="DIR", help="where the wheel goes"
    )
    chosen = parser.parse_args(words)
    try:
        wheel = build_wheel(chosen.source.resolve(), chosen.into.resolve(), prepare_toolchain())
    except BuildError as error:
        print(f"build_wheel: {error}", file=sys.stderr)
        return 1
    print(hashlib.sha256(wheel.read_bytes()).hexdigest(), os.path.relpath(wheel))
    return 0


def prepare_toolchain() -> Path:
    """The Python of `.venv-wheel`, made anew unless it was made from this very lock by this Python.

    Raises `BuildError` when the packages can't be had; the next call then begins again.
    """
    python = TOOLCHAIN / "bin" / "python"
    marker = TOOLCHAIN / ".made-from"
    key = f"{hashlib.sha256(LOCK.read_bytes()).hexdigest()} {sys.version}\n"
    if marker.is_file() and marker.read_text() == key:
        return python
    print(f"build_wheel: making {TOOLCHAIN.name}, with a download of 100 MB", file=sys.stderr)
    marker.unlink(missing_ok=True)
    venv.create(TOOLCHAIN, clear=True, with_pip=True, symlinks=True)
    (TOOLCHAIN / ".gitignore").write_text("*\n")
    install = (
        "-m pip install --quiet --no-input --disable-pip-version-check --only-binary :all: --require-hashes"
    )
    _run([python, *install.split(), "--requirement", LOCK], cwd=ROOT)
    marker.write_text(key)
    return python


def build_wheel(source: Path, into: Path, python: Path) -> Path:
    """Builds the tree `source` and returns the wheel, which replaces its namesake in `into` by a rename.

    Works on a copy: no leavings of other builds get in, and none come into the tree. Raises `BuildError`.
    """
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=into) as scratch:
        tree, made = Path(scratch) / "tree", Path(scratch) / "made"
        made.mkdir()
        _copy_source(source, tree)
        guest = tree / "src" / "ramet" / "guest"
        for program in PROGRAMS:
            _build_guest(guest / program, guest / "bin", python, Path(scratch) / "zig")
        _run([python, "-c", BACKEND, made], cwd=tree, SOURCE_DATE_EPOCH=str(DATE_S))
        [wheel] = made.iterdir()
        return wheel.replace(into / wheel.name)


def _copy_source(source: Path, tree: Path) -> None:
    """What a wheel is made of, with modes that depend on this program's umask alone."""
    shutil.copytree(
        source / "src" / "ramet",
        tree / "src" / "ramet",
        ignore=shutil.ignore_patterns("__pycache__", "bin"),
        copy_function=shutil.copyfile,
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(source / name, tree / name)


def _build_guest(program: Path, into: Path, python: Path, zig_cache: Path) -> None:
    """Cross-compiles a guest's program. What it links with stays in zig's own cache."""
    _run(
        ["make", "--silent", "cross", f"INTO={os.path.relpath(into, program)}", "ZIG=python -m ziglang"],
        cwd=program,
        PATH=f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        ZIG_LOCAL_CACHE_DIR=str(zig_cache),
    )


def _run(command: list[str | Path], *, cwd: Path, **environment: str) -> None:
    """Runs a step. Its output is shown only when it fails."""
    inherited = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**inherited, "LC_ALL": "C.UTF-8", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=BUILD_TIMEOUT_S,
        )
    except OSError as error:
        raise BuildError(f"{command[0]} can't be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"not done after {BUILD_TIMEOUT_S} s: {' '.join(map(str, command))}") from error
    if done.returncode:
        raise BuildError(f"exit code {done.returncode}: {' '.join(map(str, command))}\n{done.stdout}")


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
