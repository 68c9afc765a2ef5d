"""A real Firecracker with the probe, driven by hand: no driver of ramet's is needed to test the guest."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from ramet.drivers.firecracker.driver import Firecracker
from ramet.errors import UnavailableError
from ramet.guest.client import AgentClient

LIMIT_S = 20
BOOT_ARGUMENTS = "console=ttyS0 reboot=k panic=-1 quiet 8250.nr_uarts=1 ramet.power_off=reset"


def find_firecracker() -> Path | None:
    """The one that ramet would run, or None."""
    try:
        return Path(Firecracker().program())
    except UnavailableError:
        return None


class _Api(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LIMIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(LIMIT_S)
        self.sock.connect(str(self._path))


class Vmm:
    """A Firecracker process that works in `directory`. Its console is the file `console` there."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.process = process

    def api(self, method: str, path: str, **body: Any) -> None:
        """A request that has to succeed."""
        connection = _Api(self.directory / "api.sock")
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 204, answer.read().decode()
        finally:
            connection.close()

    def pause(self) -> None:
        self.api("PATCH", "/vm", state="Paused")

    def resume(self) -> None:
        self.api("PATCH", "/vm", state="Resumed")

    def snapshot(self) -> None:
        """Leaves `mem` and `vmstate` in the directory. Paused before, it stays so."""
        kind = {"snapshot_type": "Full", "snapshot_path": "vmstate", "mem_file_path": "mem"}
        self.api("PUT", "/snapshot/create", **kind)

    def console(self) -> str:
        return (self.directory / "console").read_text(errors="replace")

    def cpu_s(self) -> float:
        """Processor time that it has used, its threads and what KVM did for them included."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @asynccontextmanager
    async def stream(self, port: int = 1024) -> AsyncIterator[anyio.abc.ByteStream]:
        """A connection to that port of the guest. Raises `EndOfStream` when the guest refuses it."""
        async with await anyio.connect_unix(self.directory / "vsock.sock") as stream:
            await stream.send(f"CONNECT {port}\n".encode())
            line = b""
            with anyio.fail_after(LIMIT_S):
                while not line.endswith(b"\n"):
                    line += await stream.receive(1)
            assert line.startswith(b"OK "), line
            yield stream

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[AgentClient]:
        """A session on a connection of its own."""
        async with self.stream() as stream, AgentClient.connect(stream, timeout_s=LIMIT_S) as agent:
            yield agent


@contextmanager
def _running(directory: Path, *words: str) -> Iterator[Vmm]:
    program = find_firecracker()
    assert program is not None
    # Not to the console, into the middle of what the guest says.
    (directory / "log").touch()
    with (directory / "console").open("wb") as console:
        process = subprocess.Popen(
            [program, "--api-sock", "api.sock", "--log-path", "log", *words],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Vmm(directory, process)
    finally:
        process.kill()
        process.wait()


def _until(process: subprocess.Popen[bytes], console: Path, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not done():
        assert process.poll() is None, console.read_text(errors="replace")
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        try:
            stream.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


@contextmanager
def booted(
    directory: Path, probe: Path, *, memory_mib: int = 128, cpus: int = 1, disk_bytes: int | None = 1 << 20
) -> Iterator[Vmm]:
    """A Firecracker whose probe has said that it is ready."""
    drive = {"drive_id": "data", "path_on_host": "disk.raw", "is_root_device": False, "is_read_only": False}
    configuration = {
        "boot-source": {"kernel_image_path": str(probe), "boot_args": BOOT_ARGUMENTS},
        "drives": [] if disk_bytes is None else [drive],
        "machine-config": {"vcpu_count": cpus, "mem_size_mib": memory_mib},
        "vsock": {"guest_cid": 3, "uds_path": "vsock.sock"},
    }
    (directory / "config.json").write_text(json.dumps(configuration))
    if disk_bytes is not None:
        (directory / "disk.raw").touch()
        os.truncate(directory / "disk.raw", disk_bytes)
    with _running(directory, "--config-file", "config.json") as vmm:
        _until(vmm.process, directory / "console", lambda: "probe: ready" in vmm.console())
        yield vmm


@contextmanager
def restored(directory: Path, source: Path) -> Iterator[Vmm]:
    """A fork of the snapshot in `source`, running: the mem-file linked, the disk its own."""
    directory.mkdir(exist_ok=True)
    for name in ("mem", "vmstate"):
        (directory / name).hardlink_to(source / name)
    shutil.copyfile(source / "disk.raw", directory / "disk.raw")
    with _running(directory) as vmm:
        _until(vmm.process, directory / "console", lambda: _listens(directory / "api.sock"))
        memory = {"backend_type": "File", "backend_path": "mem"}
        vmm.api("PUT", "/snapshot/load", snapshot_path="vmstate", mem_backend=memory, resume_vm=True)
        yield vmm
