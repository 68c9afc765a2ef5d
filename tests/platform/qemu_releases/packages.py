"""QEMUs of other releases, from the suites of the Debian archive that this machine's apt uses.

Nothing of the system's is changed: apt works with a source list, lists and a cache of its own, and packages
are unpacked beside, with the libraries that they need. Their downloads are kept in ramet's cache, under a
name made of this recipe.

What is pinned is the release. A mirror has one version of a package, and drops it with the next update, so a
version that is written down here would be gone in weeks. Its hash is known all the same: apt takes a package
by the SHA-256 in the suite's `Packages`, that by the one in `Release`, and that by Debian's signature.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet import config
from ramet.errors import UnavailableError
from ramet.images.publish import published_directory

PACKAGES: Final = ("qemu-system-x86", "qemu-utils")
_PROGRAMS: Final = ("qemu-system-x86_64", "qemu-img", "qemu-io")
_LIBRARIES: Final = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
"""Debian 12's packages have some in either."""
_LINKER: Final = "ld-linux-x86-64.so.2"
_FIRMWARE: Final = ("usr/share/qemu", "usr/share/seabios")
_KEYRINGS: Final = tuple(
    Path(f"/usr/share/keyrings/debian-archive-keyring.{kind}") for kind in ("gpg", "pgp")
)
_LIMIT_S: Final = 300
_WORDS: Final = 4


@dataclass(frozen=True)
class Suite:
    """Where a release is: `name` its major and minor number, `suites` Debian's, the last of which has it."""

    name: str
    suites: tuple[str, ...]


SUITES: Final = (
    Suite("7.2", ("bookworm",)),
    Suite("10.0", ("trixie",)),
    Suite("11.1", ("trixie", "trixie-backports")),
)


@dataclass(frozen=True)
class Unpacked:
    """A QEMU that can be run. `bin` has its programs, for PATH."""

    name: str
    bin: Path

    @property
    def qemu(self) -> str:
        """For RAMET_QEMU."""
        return str(self.bin / _PROGRAMS[0])


@contextmanager
def unpacked(suite: Suite) -> Iterator[Unpacked]:
    """That release, in a directory that every user may read, for as long as the block lasts.

    Raises `UnavailableError` with the reason where it can't be had.
    """
    packages = _packages(suite)
    with tempfile.TemporaryDirectory(prefix=f"ramet-qemu-{suite.name}-") as directory:
        place = Path(directory)
        place.chmod(0o755)
        for package in sorted(packages.glob("*.deb")):
            _run("dpkg-deb", "--extract", package, place / "root")
        programs = place / "bin"
        programs.mkdir(mode=0o755)
        for name in _PROGRAMS:
            _write_wrapper(programs / name, place / "root")
        yield Unpacked(suite.name, programs)


def _write_wrapper(program: Path, root: Path) -> None:
    """A script that becomes the program of that name in `root`, with the dynamic linker, the libraries, the
    modules and the firmware from there: ld.so(8); QEMU's `util/module.c` has QEMU_MODULE_DIR.
    """
    libraries = [root / library for library in _LIBRARIES]
    linker = next(library / _LINKER for library in libraries if (library / _LINKER).is_file())
    words: list[str | Path] = [linker, "--argv0", program, "--library-path", ":".join(map(str, libraries))]
    words.append(root / "usr/bin" / program.name)
    if program.name == _PROGRAMS[0]:
        for firmware in _FIRMWARE:
            words += ["-L", root / firmware]
    modules = shlex.quote(str(libraries[0] / "qemu"))
    line = shlex.join(map(str, words))
    program.write_text(f'#!/bin/sh\nexport QEMU_MODULE_DIR={modules}\nexec {line} "$@"\n')
    program.chmod(0o755)


def _packages(suite: Suite) -> Path:
    """The directory with the packages of that release, downloaded now if that hasn't been done before."""
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:20]
    cache = config.cache_directory() / "qemu-releases"
    target = cache / f"{suite.name}-{key}"
    if not target.is_dir():
        print(f"QEMU {suite.name}: downloading it, once, from Debian's {suite.suites[-1]}", file=sys.stderr)
        with published_directory(target) as making:
            _download(suite, making)
        for other in cache.glob(f"{suite.name}-*"):
            if other != target:
                shutil.rmtree(other, ignore_errors=True)
    return target


def _download(suite: Suite, into: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ramet-apt-") as directory:
        apt = Path(directory)
        settings = _settings(apt, suite)
        _run("apt-get", *settings, "-o", "APT::Update::Error-Mode=any", "update")
        wanted = ("--yes", "--no-install-recommends", "--download-only", "install", *PACKAGES)
        _run("apt-get", *settings, "--target-release", suite.suites[-1], *wanted)
        for package in (apt / "cache" / "archives").glob("*.deb"):
            shutil.move(package, into / package.name)


def _settings(apt: Path, suite: Suite) -> list[str]:
    """Options with which apt-get works in `apt` alone. What the system says of proxies and checks stays; the
    programs that it wants run after an update don't, they are about the system's lists.
    """
    for made in ("lists/partial", "cache/archives/partial"):
        (apt / made).mkdir(parents=True)
    (apt / "status").touch()  # nothing is installed: every library comes along
    keyring = next((path for path in _KEYRINGS if path.exists()), None)
    lines = [
        "Types: deb",
        f"URIs: {_archive()}",
        f"Suites: {' '.join(suite.suites)}",
        "Components: main",
        "Architectures: amd64",
        "Targets: Packages",
    ]
    if keyring is not None:
        lines.append(f"Signed-By: {keyring}")
    (apt / "list.sources").write_text("\n".join(lines) + "\n")
    settings = {
        "Dir::State": apt,
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "list.sources",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferences": "-",
        "Dir::Etc::preferencesparts": "-",
        "APT::Sandbox::User": "root",
        "APT::Architecture": "amd64",
        "Debug::NoLocking": 1,
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": 30,
    }
    ours = "".join(f'{name} "{value}";\n' for name, value in settings.items())
    hooks = ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")
    (apt / "settings").write_text("".join(f"#clear APT::Update::{hook};\n" for hook in hooks) + ours)
    return ["--quiet", "--quiet", "--config-file", str(apt / "settings")]


def _archive() -> str:
    """The address of the archive from which this machine's own packages come: apt's own word."""
    fields = "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)"
    listed = _run("apt-get", "indextargets", "--format", fields, "Created-By: Packages")
    for line in listed.splitlines():
        origin, label, uri = line.split("\t")
        if (origin, label) == ("Debian", "Debian"):
            return uri
    raise UnavailableError("apt has no list of Debian's here", hint="run `apt-get update`")


def _run(*words: str | Path) -> str:
    """A program's standard output. `UnavailableError` with its last words when it fails or takes too long."""
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"another QEMU can't be had: {error}") from error
    if done.returncode != 0:
        said = " / ".join((done.stdout + done.stderr).strip().splitlines()[-_WORDS:])
        raise UnavailableError(f"another QEMU can't be had: {words[0]}: {said}")
    return done.stdout
