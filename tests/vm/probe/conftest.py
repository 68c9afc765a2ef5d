"""The probe, built, on a machine that can run it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import ramet.guest
from ramet.errors import UnavailableError
from ramet.guest.agent_binary import probe_path
from tests import machines
from tests.support.firecracker import find_firecracker

SOURCES = Path(ramet.guest.__file__).parent / "probe"


@pytest.fixture(scope="session")
async def runs_code(anyio_backend: str) -> None:
    """Skips where nothing runs guests. A KVM that can't run Linux will do."""
    if find_firecracker() is None:
        pytest.skip("there is no Firecracker on PATH, nor in the cache's tools")
    await machines.require_kvm("bare-metal")


@pytest.fixture(scope="session")
def probe(runs_code: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sources where a compiler is, else the one that was built before."""
    if shutil.which("gcc") and shutil.which("make"):
        out = tmp_path_factory.mktemp("probe") / "probe"
        subprocess.run(["make", "-C", SOURCES, f"OUT={out}"], check=True, timeout=120)
        return out
    try:
        return probe_path()
    except UnavailableError as error:
        pytest.skip(str(error))
