"""Guests of container images, booted on an emulated machine without an engine: kernel, agent, image, root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import pytest

from ramet import config
from ramet.disk.filesystem import find_mke2fs
from ramet.errors import UnavailableError
from ramet.guest.agent_binary import agent_path
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.messages import ExecRequest, IdentityRequest
from ramet.guest.ports import claim_port
from ramet.images.container import container_boot_image
from ramet.images.erofs.blob import BLOCK_BYTES, mark
from ramet.images.image import Image
from ramet.images.linux import find_busybox
from ramet.system import sockets
from tests.unit.images.layer_tars import Member, image_of, member, merged, tar

DIR: Final = tarfile.DIRTYPE
LINK: Final = tarfile.SYMTYPE
RAM_ROOT: Final = "ramet.root=ram:33554432"
_APPLETS: Final = (
    *(
        "sh",
        "cat",
        "echo",
        "ls",
        "stat",
        "id",
        "df",
        "mount",
        "chown",
        "mv",
        "mkdir",
        "rm",
        "dd",
        "grep",
        "head",
    ),
    *("sha256sum", "sleep", "hostname", "readlink", "unshare", "sync", "touch", "tail", "true", "ln", "seq"),
)


@dataclass(frozen=True)
class Device:
    """A device file of an image, and what the kernel's arguments say of it."""

    path: Path
    blocks: int
    digest: str

    def argument(self, number: int, serial: str) -> str:
        return f"ramet.base={number},{serial}:{self.blocks}:{self.digest[:32]}"


def busybox_layer() -> list[Member]:
    """A root with a shell."""
    try:
        busybox = find_busybox().read_bytes()
    except UnavailableError as error:
        pytest.skip(str(error))
    return [
        member(".", DIR, mode=0o755),
        member("bin", DIR, mode=0o755),
        member("bin/busybox", data=busybox, mode=0o755),
        *[member(f"bin/{applet}", LINK, link="busybox") for applet in _APPLETS],
    ]


def make_image(
    directory: Path, layers: Sequence[Sequence[Member]], shared: Sequence[int] = ()
) -> tuple[Device, ...]:
    """Write an image of these layers, of which the `shared` are devices by themselves."""
    directory.mkdir(exist_ok=True)
    devices = []

    def seal(path: Path, digest: str) -> None:
        blocks = path.stat().st_size // BLOCK_BYTES
        with path.open("ab") as file:
            file.write(mark(blocks, digest))
        devices.append(Device(path, blocks, digest.removeprefix("sha256:")))

    with merged([tar(layer) for layer in layers], step=1 << 20) as tree:
        own = directory / "own.erofs"
        seal(own, image_of(tree, own, shared).digest)
        for layer in shared:
            path = directory / f"layer{layer}.erofs"
            tree.pages[layer].seek(0)
            with path.open("wb") as file:
                shutil.copyfileobj(tree.pages[layer], file)
            seal(path, tree.contents[layer].digest)
    return tuple(devices)


def make_root_disk(path: Path, mib: int = 64) -> Path:
    """Make an ext4 filesystem in a sparse file."""
    path.touch()
    os.truncate(path, mib << 20)
    subprocess.run(
        [find_mke2fs(), "-q", "-F", "-t", "ext4", "-m", "0", "-E", "nodiscard", path], check=True, timeout=60
    )
    return path


def is_clean(disk: Path) -> bool:
    """True if the filesystem was unmounted: no journal is to be replayed, and nothing is to be mended."""
    checked = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True, timeout=60)
    return checked.returncode == 0 and "journal" not in checked.stdout


def boot_image() -> Image:
    """The kernel and the initramfs, or a skip with the reason."""
    try:
        config.qemu_binary()
        return container_boot_image(agent_path)
    except UnavailableError as error:
        pytest.skip(str(error))


class ContainerGuest:
    """A guest that runs. Its root disk and data disks are written to, its devices are not."""

    def __init__(self, directory: Path, vmm: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.vmm = vmm

    @property
    def console(self) -> str:
        return (self.directory / "console").read_text(errors="replace").replace("\r\n", "\n")

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AgentClient]:
        async with (
            claim_port(self.directory, 1, 30) as stream,
            AgentClient.connect(stream, timeout_s=60) as agent,
        ):
            yield agent

    async def powered_off(self) -> str:
        """Wait for the guest's end, and return its console."""
        assert await anyio.to_thread.run_sync(self.vmm.wait, 60) == 0
        return self.console


@contextmanager
def booted(
    directory: Path,
    devices: Sequence[Device],
    root: str = RAM_ROOT,
    *,
    root_disk: Path | None = None,
    data: Sequence[tuple[Path, str]] = (),
    arguments: Sequence[str] = (),
    has_serials: bool = True,
) -> Iterator[ContainerGuest]:
    """Boot a guest, and end its VMM afterwards. `data` are disks and where they are mounted.

    `arguments` take the place of those that name the image's devices.
    """
    image = boot_image()
    assert image.initramfs is not None
    directory.mkdir(exist_ok=True)
    drives, words = list[str](), list[str]()

    def add(path: Path, serial: str, read_only: str) -> int:
        number = len(drives) // 4
        file = f"file={path.absolute()},if=none,id=d{number},format=raw,file.locking=off,readonly={read_only}"
        named = f",serial={serial}" if has_serials else ""
        drives.extend(["-drive", file, "-device", f"virtio-blk-pci,drive=d{number}{named}"])
        return number

    for order, (path, place) in enumerate(data):
        words.append(f"ramet.disk={add(path, f'disk{order}', 'off')},disk{order}:{place}")
    words.append(root if root_disk is None else f"ramet.root=disk:{add(root_disk, 'root', 'off')},root")
    named = [
        device.argument(add(device.path, f"base{order}", "on"), f"base{order}")
        for order, device in enumerate(devices)
    ]
    words += arguments or named
    directory_fd = os.open(directory, os.O_PATH)
    with sockets.listen(directory_fd, "agent0.sock") as listener:
        os.close(directory_fd)
        vmm = subprocess.Popen(
            [
                *(config.qemu_binary(), "-accel", "tcg", "-machine", "pc", "-cpu", "max,-cx16", "-m", "192M"),
                *("-nodefaults", "-display", "none", "-action", "reboot=shutdown", "-serial", "file:console"),
                *("-chardev", f"socket,id=agent,fd={listener.fileno()},server=on,wait=off"),
                *("-device", "virtio-serial", "-device", "virtserialport,chardev=agent,name=ramet.agent.0"),
                *("-kernel", image.kernel, "-initrd", image.initramfs),
                *("-append", " ".join(("console=ttyS0 no_timer_check panic=-1 quiet", *words)), *drives),
            ],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
    try:
        yield ContainerGuest(directory, vmm)
    finally:
        vmm.kill()
        vmm.wait()


async def shell(agent: AgentClient, script: str, **options: object) -> str:
    """The output of a script that must succeed."""
    result = await run_exec(agent, ExecRequest(("sh", "-c", script), **options))  # type: ignore[arg-type]
    assert (result.exit_code, result.stderr) == (0, b""), result
    return result.stdout.decode().strip()


def identity(number: int) -> IdentityRequest:
    """A fork's identity."""
    return IdentityRequest(number, os.urandom(64), f"fork-{number}", f"{number:032x}")
