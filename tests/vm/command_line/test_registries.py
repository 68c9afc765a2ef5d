"""Images from elsewhere on the command line: pushed, pulled and run with each login; of podman and Docker."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from ramet import config
from ramet.images.linux import find_busybox
from tests.conftest import assert_nothing_left
from tests.support.shell import Shell
from tests.unit.images.sources.archives import archive, docker_save
from tests.unit.images.sources.podman import podman
from tests.unit.images.sources.test_programs import docker_answers, run
from tests.unit.oci import docker_registry
from tests.unit.oci.docker_registry import PASSWORD, USER, TokenServer

pytestmark = [pytest.mark.vm, pytest.mark.deep]

_GREETING = ("--rootfs", "ram:16M", "--entrypoint", "/bin/busybox")
_WORDS = ("sh", "-c", "echo from $0; exit 3", "here")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root filesystem of busybox alone."""
    program = tmp_path / "root/bin/busybox"
    program.parent.mkdir(parents=True)
    program.write_bytes(find_busybox().read_bytes())
    program.chmod(0o755)
    return tmp_path / "root"


@pytest.fixture
def ramet(home: Path, tmp_path: Path) -> Iterator[Shell]:
    """`ramet` on an empty home, with downloads of its own, and credentials of nobody's."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for entry in config.cache_directory().iterdir():
        if entry.name != "oci":
            (cache / entry.name).symlink_to(entry)
    shell = Shell(home)
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "RAMET_REGISTRY_CA"):
        shell.environment.pop(name, None)
    shell.environment |= {
        "RAMET_DRIVER": "qemu", "RAMET_CACHE": str(cache), "DOCKER_CONFIG": str(tmp_path / "docker"),
    }  # fmt: skip
    yield shell
    shell.close()
    assert_nothing_left(home)


def log_in(directory: Path, address: str, password: str) -> None:
    directory.mkdir(exist_ok=True)
    entry = {"username": USER, "password": password}
    (directory / "config.json").write_text(json.dumps({"auths": {address: entry}}))


@pytest.mark.parametrize("kind", ["anonymous", "basic", "bearer"])
def test_push_pull_and_run(ramet: Shell, root: Path, tmp_path: Path, kind: str) -> None:
    """With a private authority, by the setting. A registry with tokens gives images away, and takes none."""
    docker_registry.program()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = docker_registry.write_certificates(authority, tmp_path)
    with ExitStack() as stack:
        auth = None
        if kind == "basic":
            auth = docker_registry.passwords(tmp_path)
        elif kind == "bearer":
            tokens = TokenServer(tmp_path)
            stack.enter_context(tokens.serving(tls))
            auth = tokens.auth()
        address = stack.enter_context(docker_registry.running(tmp_path / "registry", auth=auth, tls=tls))
        name = f"{address}/team/app:1"
        ramet("image", "import", "--name", "app", str(root))

        said = ramet("image", "push", "app", name, code=1).stderr
        assert b"doesn't trust" in said
        assert b"RAMET_REGISTRY_CA" in said
        ramet.environment["RAMET_REGISTRY_CA"] = str(tmp_path / "ca.pem")
        if kind != "anonymous":
            said = ramet("image", "push", "app", name, code=1).stderr
            assert f"docker login {address}".encode() in said
            log_in(tmp_path / "docker", address, "wrong")
            assert (
                f"refuses the login of {USER}".encode() in ramet("image", "push", "app", name, code=1).stderr
            )
            log_in(tmp_path / "docker", address, PASSWORD)
        pushed = ramet.json("image", "push", "--json", "app", name)
        ramet("image", "rm", "app")

        assert b"--pull never" in ramet("run", "--pull", "never", name, code=3).stderr
        if kind == "basic":
            log_in(tmp_path / "docker", address, "wrong")
            assert f"refuses the login of {USER}".encode() in ramet("pull", name, code=1).stderr
            log_in(tmp_path / "docker", address, PASSWORD)
        elif kind == "bearer":
            (tmp_path / "docker/config.json").unlink()
        done = ramet("run", "--rm", *_GREETING, name, *_WORDS, code=3)
        assert done.stdout == b"from here\n"
        pulled = ramet.json("pull", "--json", f"{address}/team/app@{pushed['digest']}")
        assert pulled["digest"] == pushed["digest"]
    # The registry is gone: what is here needs none, but for who asks for it.
    assert ramet.json("image", "inspect", "--json", name)["digest"] == pushed["digest"]
    assert b"can't be reached" in ramet("run", "--pull", "always", name, *_WORDS, code=125).stderr


@pytest.mark.parametrize("tool", ["podman", "docker"])
def test_an_image_of_another_program(
    ramet: Shell, root: Path, tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "localhost/ramet-test-cli:1"
    with ExitStack() as stack:
        if tool == "podman":
            program = stack.enter_context(podman(tmp_path / "podman", monkeypatch))
        elif docker_answers():
            program = "docker"
        else:
            pytest.skip("no Docker daemon runs here")
        packed = shutil.make_archive(str(tmp_path / "root"), "tar", root)
        saved = archive(docker_save({name: [Path(packed).read_bytes()]}), tmp_path / "saved.tar")
        run(program, "load", "--input", saved)
        stack.callback(run, program, "image", "rm", name)
        for variable in ("HOME", "PATH", "LD_LIBRARY_PATH", "CONTAINERS_STORAGE_CONF", "CONTAINERS_CONF"):
            if value := os.environ.get(variable):
                ramet.environment[variable] = value
        made = ramet.json("image", "import", "--json", f"{tool}:{name}")
        assert made["name"] == name
        assert b"no image" in ramet("image", "import", f"{tool}:localhost/none", code=3).stderr
    done = ramet("run", "--rm", *_GREETING, name, *_WORDS, code=3)
    assert done.stdout == b"from here\n"
