"""Debian's docker-registry for tests, put into ramet's tool directory; nothing happens when there is one.

The package is downloaded and unpacked, never installed: its service listens on every address of the machine.
apt checks its signature. Without it the tests that push and pull are skipped.
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

PROGRAM: Final = "docker-registry"
_LIMIT_S: Final = 300


def main() -> None:
    """Find or fetch the registry; exit code 1 when neither works."""
    tools = config.tools_directory()
    if shutil.which(PROGRAM) or os.access(tools / PROGRAM, os.X_OK):
        return
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        sys.exit(f"{PROGRAM} is a package of Debian and Ubuntu, and this is neither")
    print(f"setup: downloading, not installing: {PROGRAM}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", PROGRAM]
        if subprocess.run(fetch, cwd=scratch, stdin=subprocess.DEVNULL, timeout=_LIMIT_S).returncode:
            sys.exit(f"apt-get can't download {PROGRAM}")
        (package,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg", "-x", package, f"{scratch}/x"], check=True, timeout=_LIMIT_S)
        tools.mkdir(parents=True, exist_ok=True)
        new = tools / f".{PROGRAM}-{os.getpid()}"
        shutil.copyfile(Path(scratch, "x", "usr", "bin", PROGRAM), new)
        new.chmod(0o755)
        new.replace(tools / PROGRAM)


if __name__ == "__main__":
    main()
