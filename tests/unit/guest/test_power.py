"""Powering off: which argument says that there is no power switch, and what is done then, in a VM."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet import config
from ramet.errors import UnavailableError
from ramet.guest.client import AgentClient
from ramet.guest.ports import claim_port
from ramet.images.builtin import build_builtin
from ramet.images.image import Image
from ramet.images.kernel import find_kernel
from ramet.images.linux import find_busybox
from ramet.system import sockets

from .conftest import shared_library

WORD = "ramet.power_off=reset"
LINE = b"\r\nramet: power off\r\n"


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = shared_library(tmp_path_factory.mktemp("init"), "init/cmdline.c")
    loaded = ctypes.CDLL(str(library))
    loaded.init_has_argument.restype = ctypes.c_bool
    return loaded


words = st.one_of(
    st.just(WORD),
    st.sampled_from([f"x{WORD}", f"{WORD}x", f'"{WORD}"', WORD[:-1], "ramet.power_off=", "quiet"]),
    st.text(st.characters(codec="ascii", exclude_characters=" \t\r\n\0"), min_size=1, max_size=30),
)


@given(st.lists(words), st.sampled_from([" ", "  ", "\t"]), st.sampled_from(["", "\n", " \n"]))
def test_an_argument_is_a_whole_word(init: ctypes.CDLL, line: list[str], space: str, end: str) -> None:
    for text in (space.join(line) + end, space + space.join(line) + end):
        assert init.init_has_argument(text.encode(), WORD.encode()) == (WORD in line)


@pytest.fixture(scope="module")
def image(agent_program: Path) -> Image:
    """The built-in image with the agent of this tree."""
    try:
        config.qemu_binary()
        return build_builtin(find_kernel(), agent_program, find_busybox())
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.vm
@pytest.mark.anyio
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("argument", "reboot", "powers_off", "says_it"),
    [
        pytest.param("", False, True, False, marks=pytest.mark.deep),
        (WORD, False, False, True),
        (WORD, True, False, False),
    ],
)
async def test_without_a_power_switch_it_says_so_and_resets(
    image: Image, tmp_path: Path, argument: str, reboot: bool, powers_off: bool, says_it: bool
) -> None:
    assert image.initramfs is not None
    directory_fd = os.open(tmp_path, os.O_PATH)
    with (tmp_path / "log").open("wb") as log, sockets.listen(directory_fd, "agent0.sock") as listener:
        os.close(directory_fd)
        qemu = subprocess.Popen(
            [
                *(config.qemu_binary(), "-accel", "tcg", "-machine", "pc", "-cpu", "max", "-m", "256M"),
                *("-nodefaults", "-display", "none", "-action", "reboot=shutdown"),
                *("-trace", "qemu_system_shutdown_request", "-serial", "file:console"),
                *("-chardev", f"socket,id=agent,fd={listener.fileno()},server=on,wait=off"),
                *("-device", "virtio-serial", "-device", "virtserialport,chardev=agent,name=ramet.agent.0"),
                *("-kernel", image.kernel, "-initrd", image.initramfs),
                *("-append", f"console=ttyS0 no_timer_check panic=-1 quiet {argument}"),
            ],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[listener.fileno()],
        )
    try:
        async with (
            claim_port(tmp_path, 1, 30) as stream,
            AgentClient.connect(stream, timeout_s=120) as agent,
        ):
            await agent.shutdown(reboot=reboot)
        assert await anyio.to_thread.run_sync(qemu.wait, 60) == 0
    finally:
        qemu.kill()
        qemu.wait()
    # QEMU traces a guest's power-off, ShutdownCause 6 in its qapi/run-state.json, and no cause of a reset.
    assert ("reason=6" in (tmp_path / "log").read_text()) == powers_off
    assert (LINE in (tmp_path / "console").read_bytes()) == says_it
