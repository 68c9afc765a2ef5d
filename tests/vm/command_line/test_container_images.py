"""Container images on the command line: `run` as `docker run` has it, and the verbs of images."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ramet.images.linux import find_busybox
from ramet.model.documents import RunResult
from ramet.model.images import ImageInspection, ImportedImage, PrunedImages
from tests.conftest import assert_nothing_left
from tests.support.shell import Shell, interrupt, wait_until

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """`ramet` on a home with the image `app`, of busybox alone."""
    place = tmp_path_factory.mktemp("app")
    root = place / "root"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "bin/busybox").write_bytes(find_busybox().read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for name in ["sh", "cat", "id", "kill", "ls", "pwd", "sleep"]:
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:7:8:App:/home:/bin/sh\n")
    shell = Shell(place / "home")
    shell.environment["RAMET_DRIVER"] = "qemu"
    made = msgspec.json.decode(
        shell("image", "import", "--json", "--name", "app", str(root)).stdout, type=ImportedImage
    )
    assert made.name == "app:latest"
    yield shell
    shell.close()
    assert_nothing_left(shell.home)


def test_in_the_foreground_streams_and_code_are_the_main_processes(app: Shell) -> None:
    script = "cat; echo $A; pwd; id -u; id -g; echo err >&2; cat /dev/zero > /tmp/full; exit 3"
    words = ["--rm", "-e", "A=b", "-u", "app", "-w", "/made/here", "--rootfs", "ram:16M", "app"]
    done = app("run", *words, "sh", "-c", script, stdin=b"in\n", code=3)
    assert done.stdout == b"in\nb\n/made/here\n7\n8\n"
    assert b"err\n" in done.stderr
    assert b"root is full, all 16 MiB of it: --rootfs ram:SIZE gives it more\n" in done.stderr
    assert app("ps", "-aq").stdout == b""


@pytest.mark.deep
def test_in_the_background_wait_has_the_code(app: Shell) -> None:
    app("run", "-d", "--name", "job", "app", "sh", "-c", "echo said; sleep 1; exit 4")
    assert app("wait", "job").stdout == b"4\n"
    assert b"said" in app("logs", "job").stdout
    shown = app.json("inspect", "--json", "job")
    assert (shown["state"], shown["exit_code"], shown["image"]) == ("stopped", 4, "app:latest")
    assert app.json("image", "inspect", "--json", "app")["instances"] == ["job"]
    app("rm", "job")


@pytest.mark.deep
@pytest.mark.parametrize(
    ("number", "script", "code"),
    [
        (signal.SIGTERM, "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 1; done", 9),
        (signal.SIGINT, "echo up; exec sleep 1000", 130),
    ],
)
def test_a_signal_goes_to_the_main_process(app: Shell, number: int, script: str, code: int) -> None:
    process = app.start("run", "--rm", "app", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert said == (b"caught\n" if code == 9 else b"")
    assert app("ps", "-aq").stdout == b""


@pytest.mark.deep
def test_a_second_signal_gives_up(app: Shell) -> None:
    process = app.start("run", "--name", "deaf", "app", "sh", "-c", "trap '' TERM; echo up; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    assert interrupt(process, signal.SIGTERM) == 143
    wait_until(lambda: app.json("inspect", "--json", "deaf")["state"] == "stopped")
    assert app.json("inspect", "--json", "deaf")["exit_code"] == 137
    app("rm", "deaf")


@pytest.mark.deep
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["app", "nosuch"], 127, b"nosuch"),
        (["app", "--version"], 127, b"before IMAGE"),
        (["app", "/etc"], 126, b"/etc"),
        (["-u", "nobody", "app", "id"], 125, b"nobody"),
        (["-d", "-u", "nobody", "app", "id"], 125, b"nobody"),
    ],
)
def test_a_main_process_that_cannot_start(app: Shell, words: list[str], code: int, message: bytes) -> None:
    assert message in app("run", *words, code=code).stderr
    assert app("ps", "-aq").stdout == b""


def test_nothing_to_run_is_an_error_before_the_boot(app: Shell) -> None:
    for words in (["app"], ["-d", "app"], ["--entrypoint", "", "app"]):
        done = app("run", *words, code=2 if "-d" in words else 125)
        assert b"no entrypoint and no command" in done.stderr


@pytest.mark.deep
def test_json_and_an_entrypoint(app: Shell) -> None:
    done = app("run", "--rm", "--json", "--entrypoint", "sh", "app", "-c", "echo out; exit 2", code=2)
    result = msgspec.json.decode(done.stdout, type=RunResult)
    assert (result.command.stdout, result.command.exit_code) == ("out\n", 2)
    assert (result.state, result.exit_code) == ("stopped", 2)


@pytest.mark.deep
def test_an_instance_needs_its_image_no_more(app: Shell, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/sh").write_bytes(find_busybox().read_bytes())
    (root / "bin/sh").chmod(0o755)
    app("image", "import", "--name", "gone", str(root))
    shown = msgspec.json.decode(app("image", "inspect", "--json", "gone").stdout, type=ImageInspection)
    assert shown.own_bytes == shown.size_bytes
    app("run", "--idle", "--name", "stays", "gone")
    app("exec", "stays", "sh", "-c", "echo kept > /file")
    app("image", "rm", "gone")
    assert b"did you mean app" in app("image", "inspect", "ap", code=3).stderr
    pruned = msgspec.json.decode(app("image", "prune", "--json").stdout, type=PrunedImages)
    assert pruned.freed_bytes == 0  # the instance has a link
    app("stop", "stays")
    app("start", "stays")
    assert app("exec", "stays", "sh", "-c", "read line < /file; echo $line").stdout == b"kept\n"
    app("rm", "-f", "stays")


def test_verbs_of_images_without_a_guest(app: Shell) -> None:
    entries = app.json("image", "ls", "--json")
    assert [entry["name"] for entry in entries if entry["kind"] == "container"] == ["app:latest"]
    assert {"builtin", "probe"} <= {entry["name"] for entry in entries if entry["kind"] == "built-in"}
    header, row = app("image", "ls").stdout.decode().splitlines()[:2]
    assert header.split() == ["NAME", "DIGEST", "SIZE", "OWN", "SHARED", "CREATED"]
    assert row.split()[:2] == ["app:latest", entries[0]["digest"][7:19]]
    assert app.json("image", "inspect", "--json", entries[0]["digest"][7:19])["names"] == ["app:latest"]
    assert app.json("image", "inspect", "--json", "bare")["name"] == "probe"
    assert b"ramet makes it" in app("image", "rm", "builtin", code=2).stderr
    assert b"no image 'nosuch'" in app("image", "rm", "nosuch", code=3).stderr
    assert app("image", "rm", "nosuch", "neither", code=6).stdout == b""
    assert b"imported" in app("pull", "app", code=2).stderr
    assert b"no reference" in app("pull", "A:", code=2).stderr
    assert b"can't be reached" in app("pull", "127.0.0.1:1/x", code=1).stderr
