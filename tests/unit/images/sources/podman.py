"""Debian's podman, unpacked by `make setup`, with storage and settings of a test's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet import config

_UNPACKED = config.tools_directory() / "podman"
"""Found before a test moves the home."""
_CACHE = Path("/var/lib/containers")
"""The only directory that podman makes for root and can't be told to put elsewhere."""


@contextmanager
def podman(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Set up podman below a directory, for this process and its children. Yields the program."""
    if os.geteuid() != 0:
        pytest.skip("as another user podman wants subordinate ids and a session")
    program, usr = shutil.which("podman"), Path("/usr")
    if program is None:
        usr = _UNPACKED / "usr"
        program = str(usr / "bin/podman")
        if not os.access(program, os.X_OK):
            pytest.skip("podman isn't here (Debian's package; tools/get_podman.py fetches it)")
        libraries = next((usr / "lib").glob("*-linux-gnu"))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries))
        monkeypatch.setenv("PATH", f"{usr / 'bin'}:{os.environ['PATH']}")
    settings = directory / ".config" / "containers"
    settings.mkdir(parents=True)
    (settings / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (settings / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\nrunroot = "{directory}/run"\ngraphroot = "{directory}/graph"\n'
    )
    (settings / "containers.conf").write_text(
        f"""[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
conmon_path = ["{usr}/bin/conmon"]
static_dir = "{directory}/libpod"
tmp_dir = "{directory}/tmp"
volume_path = "{directory}/volumes"
runtime = "crun"
[engine.runtimes]
crun = ["{usr}/bin/crun"]
[network]
network_config_dir = "{directory}/networks"
"""
    )
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(settings / "storage.conf"))
    monkeypatch.setenv("CONTAINERS_CONF", str(settings / "containers.conf"))
    was_there = _CACHE.exists()
    try:
        yield program
    finally:
        if not was_there:
            shutil.rmtree(_CACHE, ignore_errors=True)
