"""Debian's podman for tests, put into ramet's tool directory; nothing happens when there is one.

The packages are downloaded and unpacked, never installed: nothing is set up on this machine. apt checks their
signatures. Without podman the tests that import its images are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from ramet import config

DIRECTORY: Final = "podman"
"""In the tool directory: `usr/bin/podman` and what it needs below."""
_PACKAGES: Final = ("podman", "conmon", "crun", "libgpgme11", "libassuan0", "libsubid4")
_LIMIT_S: Final = 300


def main() -> None:
    """Find or fetch podman; exit code 1 when neither works."""
    place = config.tools_directory() / DIRECTORY
    if shutil.which("podman") or os.access(place / "usr/bin/podman", os.X_OK):
        return
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        sys.exit("podman is a package of Debian and Ubuntu, and this is neither")
    print(f"setup: downloading, not installing: {' '.join(_PACKAGES)}", flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *_PACKAGES]
        if subprocess.run(fetch, cwd=scratch, stdin=subprocess.DEVNULL, timeout=_LIMIT_S).returncode:
            sys.exit("apt-get can't download podman")
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, f"{scratch}/x"], check=True, timeout=_LIMIT_S)
        shutil.rmtree(place, ignore_errors=True)
        Path(scratch, "x").replace(place)


if __name__ == "__main__":
    main()
