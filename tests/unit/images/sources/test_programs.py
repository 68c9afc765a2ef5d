"""Images of Docker and podman: saved by their commands, which may be missing, idle, or without that image."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ramet.errors import NotFoundError, UnavailableError, UsageError
from ramet.images.library.library import Library
from ramet.images.sources.load import import_image
from tests.unit.images.library.libraries import seen
from tests.unit.images.sources.archives import LAYERS, archive, docker_save
from tests.unit.images.sources.podman import podman

pytestmark = pytest.mark.anyio


def run(*words: object) -> str:
    return subprocess.run(
        list(map(str, words)), check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


def docker_answers() -> bool:
    program = shutil.which("docker")
    if program is None:
        return False
    asked = subprocess.run([program, "version"], capture_output=True, timeout=60)
    return asked.returncode == 0


@pytest.mark.parametrize("tool", ["docker", "podman"])
async def test_a_missing_program_is_named(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    package = {"docker": "docker.io", "podman": "podman"}[tool]
    with pytest.raises(UnavailableError, match=rf"{tool} is not on PATH \(install it .*{package}\)"):
        await import_image(library, f"{tool}:app")


@pytest.mark.parametrize("source", ["docker:", "podman:", "docker:-o", "podman: a", "docker:a\nb"])
async def test_a_name_that_is_none(library: Library, source: str) -> None:
    with pytest.raises(UsageError, match="names no image of"):
        await import_image(library, source)


async def test_a_daemon_that_does_not_run(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker here")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(UnavailableError, match="docker can't save app:1: its daemon doesn't run"):
        await import_image(library, "docker:app:1")
    assert list(library._places.root.glob(".making-*")) == []


async def test_an_image_of_docker(library: Library, tmp_path: Path) -> None:
    if not docker_answers():
        pytest.skip("no Docker daemon runs here")
    name = "localhost/ramet-test-import:1"
    source = archive(docker_save({name: LAYERS}), tmp_path / "saved.tar")
    run("docker", "load", "--input", source)
    try:
        image = (await import_image(library, f"docker:{name}")).image
        assert (image.name, image.config.cmd) == (name, ("/bin/tool",))
        assert b"bin/tool" in seen(image)
        with pytest.raises(NotFoundError, match="docker has no image localhost/ramet-test-none"):
            await import_image(library, "docker:localhost/ramet-test-none")
    finally:
        run("docker", "image", "rm", name)


@pytest.mark.deep
async def test_images_of_podman(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root that podman imports and changes the configuration of, and an archive that podman loads."""
    with podman(tmp_path / "podman", monkeypatch) as program:
        root = tmp_path / "root.tar"
        root.write_bytes(LAYERS[0])
        run(program, "import", "--change", 'CMD ["/bin/x"]', "--change", "ENV A=b", root, "localhost/root:1")
        image = (await import_image(library, "podman:localhost/root:1")).image
        assert (image.name, image.config.cmd, image.config.env) == ("localhost/root:1", ("/bin/x",), ("A=b",))
        assert set(seen(image)) == {b"", b"etc", b"etc/motd", b"gone"}

        source = archive(docker_save({"localhost/app:1": LAYERS}), tmp_path / "saved.tar")
        run(program, "load", "--input", source)
        app = (await import_image(library, "podman:localhost/app:1", name="mine:2")).image
        assert (app.name, app.config.cmd) == ("mine:2", ("/bin/tool",))
        assert set(seen(app)) == {b"", b"etc", b"etc/motd", b"bin", b"bin/tool"}

        with pytest.raises(NotFoundError, match="podman has no image localhost/none"):
            await import_image(library, "podman:localhost/none")
        assert list(library._places.root.glob(".making-*")) == []

        # What podman saves by itself, in each of its forms, is the same image.
        for form in ("oci-archive", "docker-archive", "oci-dir"):
            saved = tmp_path / form
            run(program, "save", "--format", form, "--output", saved, "localhost/app:1")
            again = (await import_image(library, saved, name=form)).image
            assert again.config == app.config
            assert seen(again) == seen(app)
            if form == "oci-archive":
                assert again.digest == app.digest
        both = tmp_path / "both.tar"
        run(program, "save", "--multi-image-archive", "--output", both, "localhost/app:1", "localhost/root:1")
        with pytest.raises(UsageError, match=r"has 2 images: localhost/(app|root):1, "):
            await import_image(library, both)
        chosen = (await import_image(library, both, ref="localhost/root:1")).image
        assert chosen.config == image.config
        assert seen(chosen) == seen(image)
        config = json.loads(run(program, "image", "inspect", "localhost/app:1"))[0]
        assert chosen.record.platform == f"{config['Os']}/{config['Architecture']}"
