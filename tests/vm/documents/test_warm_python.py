"""README's example: Debian's Python, from a registry on loopback that stands for Docker Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import examples

import ramet
from ramet.model.container import ImageConfig
from tests.support.debian_images import debian_image
from tests.unit.oci import docker_registry

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.deep, pytest.mark.timeout(900)]


async def test_readmes_example_runs_unchanged(
    home: Path, homes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = homes / f"pushes-{tmp_path.name}"
    with docker_registry.running(tmp_path / "registry") as address:
        async with ramet.Host(other) as host:
            await debian_image(host.home, ImageConfig(cmd=("python3",)), name="python")
            await host.push_image("python", f"{address}/library/python:3.13-slim")
        monkeypatch.setenv("RAMET_REGISTRY_MIRROR", f"http://{address}")
        output = examples.run_program("warm_python", home)
    assert examples.normalised(output) == examples.normalised(examples.recorded("warm_python").read_text())
