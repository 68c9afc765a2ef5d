"""For set-up: download the kernel for guests from this Debian's backports, the system's apt unchanged.

apt works in a temporary directory: with a source list, lists and a cache of its own. Its settings and proxies
stay, and it checks Debian's signatures, as for the system's own packages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

_META: Final = "linux-image-cloud-amd64"
_LIMIT_S: Final = 300
_PARTS: Final = re.compile(r"\|?(?:Pre)?Depends: (?P<name>linux-(?:image|modules|base)-\d\S*)")
_FIELDS: Final = ("$(ORIGIN)", "$(LABEL)", "$(RELEASE)", "$(REPO_URI)", "$(ARCHITECTURE)")
_KEYRINGS: Final = tuple(
    Path(f"/usr/share/keyrings/debian-archive-keyring.{kind}") for kind in ("pgp", "gpg")
)


class DownloadError(Exception):
    """The reason why there is no newer kernel."""


def main(words: list[str]) -> int:
    """Print the paths of the downloaded packages. Returns 5 when there are none, the reason on stderr."""
    if len(words) != 1:
        print("usage: newer_kernel.py DIRECTORY", file=sys.stderr)
        return 2
    try:
        for package in download(Path(words[0])):
            print(package)
    except DownloadError as error:
        print(error, file=sys.stderr)
        return 5
    return 0


def download(into: Path, *, settings: tuple[str, ...] = ()) -> list[Path]:
    """Download the packages of the backports' kernel for VMs. `settings` are further options of apt.

    Raises `DownloadError` when there are none; nothing is left in `into` then.
    """
    with tempfile.TemporaryDirectory(prefix="ramet-apt-") as directory:
        apt = _Apt(Path(directory), settings)
        release, source = _own_source(apt)
        (apt.place / "parts" / "backports.sources").write_text(source)
        apt.run("apt-get", "-o", "APT::Update::Error-Mode=any", "update")
        packages = _packages(apt)
        if not packages:
            raise DownloadError(f"{release}-backports has no {_META}")
        apt.run("apt-get", "download", *packages)
        found = sorted((apt.place / "downloads").glob("*.deb"))
        return [path.rename(into / path.name) for path in found]


class _Apt:
    """apt in `place` alone: it reads the system's settings, and neither its sources nor its lists."""

    def __init__(self, place: Path, settings: tuple[str, ...]) -> None:
        self.place = place
        for made in ("lists/partial", "cache/archives/partial", "parts", "downloads"):
            (place / made).mkdir(parents=True)
        (place / "status").touch()
        ours = {
            "Dir::State": place,
            "Dir::State::lists": place / "lists",
            "Dir::State::status": place / "status",
            "Dir::Cache": place / "cache",
            "Dir::Etc::sourcelist": place / "no-list",
            "Dir::Etc::sourceparts": place / "parts",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
            "APT::Sandbox::User": "root",
            "Debug::NoLocking": 1,
            "Acquire::Languages": "none",
            "Acquire::Retries": 1,
            "Acquire::http::Timeout": 20,
        }
        # Hooks after an update are about the system's own lists.
        hooks = ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")
        lines = [f"#clear APT::Update::{hook};" for hook in hooks]
        lines += [f'{name} "{value}";' for name, value in ours.items()]
        (place / "settings").write_text("\n".join(lines) + "\n")
        self._options = ["-qq", "--config-file", str(place / "settings")]
        self._settings = settings

    def run(self, program: str, *words: str, of_system: bool = False) -> str:
        """Run a program of apt and return its output; with `of_system` about the system's own sources."""
        options = [] if of_system else self._options
        try:
            done = subprocess.run(
                [program, *options, *self._settings, *words],
                cwd=self.place / "downloads",
                env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DownloadError(str(error)) from error
        if done.returncode != 0:
            raise DownloadError(" / ".join((done.stdout + done.stderr).strip().splitlines()[-3:]))
        return done.stdout


def _own_source(apt: _Apt) -> tuple[str, str]:
    """Return (release, source of its backports), made of the source of this machine's own packages."""
    listed = apt.run(
        "apt-get", "indextargets", "--format", "\t".join(_FIELDS), "Created-By: Packages", of_system=True
    )
    for line in listed.splitlines():
        origin, label, release, uri, architecture = line.split("\t")
        if (origin, label, architecture) == ("Debian", "Debian", "amd64") and re.fullmatch("[a-z]+", release):
            lines = ["Types: deb", f"URIs: {uri}", f"Suites: {release}-backports", "Components: main"]
            lines += ["Architectures: amd64", "Targets: Packages"]
            # Without Debian's keyring package, the keys decide that this machine's apt trusts for everything.
            lines += [f"Signed-By: {keyring}" for keyring in _KEYRINGS if keyring.exists()][:1]
            return release, "\n".join(lines) + "\n"
    raise DownloadError("apt has no list of a Debian release here")


def _packages(apt: _Apt) -> list[str]:
    """Name the packages that the metapackage leads to: the kernel, and its modules where they are apart."""
    named: list[str] = []
    waiting = [_META]
    while waiting:
        for match in _PARTS.finditer(apt.run("apt-cache", "depends", waiting.pop())):
            if match["name"] not in named:
                named.append(match["name"])
                waiting.append(match["name"])
    return named


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
