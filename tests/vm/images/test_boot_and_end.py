"""A container image's guest from its boot to its main process's end, on a root disk."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import anyio
import pytest

from ramet.errors import ExecError, ExecNotFoundError
from ramet.guest.client import run_exec
from ramet.guest.messages import ExecRequest
from tests.support.container_guest import (
    DIR,
    LINK,
    Device,
    booted,
    busybox_layer,
    identity,
    is_clean,
    make_image,
    make_root_disk,
    shell,
)
from tests.unit.images.layer_tars import member

pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.anyio, pytest.mark.timeout(240)]

TRAP = "trap 'echo asked; exit 6' QUIT; trap '' TERM; echo ready; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Device, ...]:
    layer = [
        member("sbin", DIR, mode=0o755),
        member("sbin/init", LINK, link="/lib/systemd/systemd"),
        member("lib/systemd/systemd", data=b"\x7fELF", mode=0o755),
        member("data", data=b"image\n" * 2000),
    ]
    return make_image(tmp_path_factory.mktemp("image"), [busybox_layer(), layer], shared=(0,))


async def test_a_guest_ends_with_its_main_process_and_keeps_its_root_disk(
    image: tuple[Device, ...], tmp_path: Path
) -> None:
    disk = make_root_disk(tmp_path / "root.img")
    with booted(tmp_path / "guest", image, root_disk=disk) as guest:
        async with guest.session() as agent:
            await agent.identity(identity(1))
            for program in ("/sbin/init", "systemd"):
                with pytest.raises(ExecError, match=f"{program} is systemd, which has to be process 1"):
                    await agent.spawn(ExecRequest((program,), main=True))
            await shell(agent, "echo kept >/data; mkdir /made; echo hosts >>/etc/hosts")
            result = await run_exec(
                agent, ExecRequest(("sh", "-c", "pwd; cat; exit 3"), main=True, cwd="/srv/app"), b"input"
            )
            assert (result.exit_code, result.stdout) == (3, b"/srv/app\ninput")
        console = await guest.powered_off()
    assert console.count("\nramet: the main process ended: exit 3\n") == 1
    assert is_clean(disk)


async def test_a_second_boot_finds_what_the_first_wrote(image: tuple[Device, ...], tmp_path: Path) -> None:
    disk, data = make_root_disk(tmp_path / "root.img"), make_root_disk(tmp_path / "data.img", 16)
    for boot in (1, 2):
        with booted(
            tmp_path / f"guest{boot}", image, root_disk=disk, data=[(data, "/var/lib/db")], has_serials=False
        ) as guest:
            async with guest.session() as agent:
                await agent.identity(identity(boot))
                await shell(agent, "echo line >>/data; echo line >>/var/lib/db/file; echo own >>/etc/hosts")
                lines = await shell(agent, "grep -c line /data; grep -c line /var/lib/db/file")
                assert lines == f"{boot}\n{boot}"
                hosts = await shell(agent, "cat /etc/hosts")
                assert (hosts.count("127.0.0.1\tlocalhost"), hosts.count("own")) == (1, boot)
                assert f"127.0.1.1\tfork-{boot}" in hosts
                await agent.shutdown()
            console = await guest.powered_off()
        assert "the main process" not in console
        assert is_clean(disk)
        assert is_clean(data)


@pytest.mark.parametrize(("stop_signal", "end"), [(3, "exit 6"), (None, "signal 9")])
async def test_a_shutdown_asks_the_main_process_first(
    image: tuple[Device, ...], tmp_path: Path, stop_signal: int | None, end: str
) -> None:
    with booted(tmp_path / "guest", image) as guest:
        async with guest.session() as agent:
            await agent.spawn(
                ExecRequest(("sh", "-c", TRAP), main=True, console=True, stop_signal=stop_signal)
            )
            while "ready" not in guest.console:
                await anyio.sleep(0.05)
            grace_ms = 60_000 if stop_signal is not None else 2_000
            await agent.shutdown(grace_ms=grace_ms)
            if stop_signal is None:  # meanwhile other commands go on
                assert await shell(agent, "echo on") == "on"
        console = await guest.powered_off()
    assert console.count(f"\nramet: the main process ended: {end}\n") == 1
    assert ("asked" in console) == (stop_signal is not None)


@pytest.fixture
def static_program(tmp_path: Path) -> bytes:
    compiler = shutil.which("musl-gcc")
    if compiler is None:
        pytest.skip("no musl-gcc on this machine")
    source, program = tmp_path / "main.c", tmp_path / "main"
    source.write_text('#include <stdio.h>\nint main(void) { return puts("alone") < 0; }\n')
    subprocess.run([compiler, "-static", "-o", program, source], check=True, timeout=60)
    return program.read_bytes()


async def test_an_image_of_one_static_program(static_program: bytes, tmp_path: Path) -> None:
    devices = make_image(tmp_path / "image", [[member("main", data=static_program, mode=0o755)]])
    with booted(tmp_path / "guest", devices) as guest:
        async with guest.session() as agent:
            assert (await agent.identity(identity(4))).hostname == "fork-4"
            certificate = "-----BEGIN CERTIFICATE-----\nQUFB\n-----END CERTIFICATE-----"
            assert await agent.trust([certificate]) == ("/etc/ssl/certs/ca-certificates.crt",)
            with pytest.raises(ExecNotFoundError):
                await shell(agent, "true")
            result = await run_exec(agent, ExecRequest(("/main",), main=True, cwd="/work", user="1000"))
            assert result.stdout == b"alone\n"
        assert "\nramet: the main process ended: exit 0\n" in await guest.powered_off()


@pytest.mark.parametrize("what", ["another", "order", "cut", "missing"])
async def test_a_wrong_device_is_named_before_anything_is_mounted(
    image: tuple[Device, ...], tmp_path: Path, what: str
) -> None:
    own, layer = image
    other = make_image(tmp_path / "other", [busybox_layer(), [member("x", data=b"x" * 9000)]], shared=(0, 1))[
        2
    ]
    cut = tmp_path / "cut"
    shutil.copy(layer.path, cut)
    devices, arguments, said = {
        "another": (
            (own, Device(other.path, layer.blocks, layer.digest)),
            (),
            "base1 .* bytes instead of",
        ),
        "order": ((own, layer), (own.argument(1, "base1"), layer.argument(0, "base0")), "base1 isn't"),
        "cut": (
            (own, Device(cut, layer.blocks, layer.digest)),
            (),
            "base1 isn't what the image says: it has",
        ),
        "missing": ((own,), (own.argument(0, "base0"), layer.argument(5, "base5")), "base5 .* no such disk"),
    }[what]
    cut.write_bytes(cut.read_bytes()[:-4096])
    with booted(tmp_path / "guest", devices, arguments=arguments) as guest:
        console = await guest.powered_off()
    assert re.search(f"^ramet: base {said}", console, re.MULTILINE), console
    assert "overlay" not in console
