"""The floor: what forks cost without ramet. Nothing of ramet is imported.

For each of N forks: link the parts, spawn the VMM, load the vmstate, resume, wait for the guest's first
answer; K at a time. Every fork lives until its round is over. Medians and spread in milliseconds, as JSON.

    python benchmarks/floor.py --vmm firecracker --forks 100
    python benchmarks/floor.py --vmm qemu --template ~/.local/share/ramet/instances/<id> --forks 10

Firecracker boots the probe (`make setup` builds it), and its snapshot is taken here, once. QEMU forks a
template that ramet has made: its parts, and the command line in its log.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
LIMIT_S: Final = 60.0
POLL_S: Final = 0.0005
AGAIN_S: Final = 0.1
AGENT_PORT: Final = 1024
PARTS: Final = ("mem", "vmstate")
DISK: Final = "disk.raw"
FS_IOC_GETFLAGS: Final = 0x80086601  # linux/fs.h
FS_IOC_SETFLAGS: Final = 0x40086602
FS_TOPDIR_FL: Final = 0x20000
STEPS: Final = ("link", "spawn", "load", "resume", "answer", "total")


class FloorError(Exception):
    """Something that was needed isn't there, or didn't do what it should."""


@dataclass
class Fork:
    """A fork, and when its steps were done."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None
    marks: list[float] = field(default_factory=lambda: [time.perf_counter()])

    def mark(self) -> None:
        self.marks.append(time.perf_counter())

    def times_ms(self) -> dict[str, float]:
        spans = [1000 * (after - before) for before, after in zip(self.marks, self.marks[1:], strict=False)]
        return dict(zip(STEPS, [*spans, 1000 * (self.marks[-1] - self.marks[0])], strict=True))

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def short(path: Path) -> Iterator[str]:
    """A name of `path` that fits into the 108 bytes of a socket's address (unix(7)), however long it is."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    """A connection to a UNIX socket that will be there in a moment."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(LIMIT_S)
        try:
            with short(path) as name:
                stream.connect(name)
            return stream
        except (FileNotFoundError, ConnectionRefusedError):
            stream.close()
        if process.poll() is not None:
            raise FloorError(f"the VMM of {path.parent} ended with exit code {process.returncode}")
        if time.monotonic() > deadline:
            raise FloorError(f"{path} didn't come up")
        time.sleep(POLL_S)


def receive_until(stream: socket.socket, found: Callable[[bytes], bool]) -> bytes:
    received = b""
    while not found(received):
        piece = stream.recv(65536)
        if not piece:
            raise FloorError(f"the connection ended after {received[-200:]!r}")
        received += piece
    return received


def greet(stream: socket.socket) -> None:
    """Exchange HELLO and WELCOME of docs/reference/protocol.md. The nonce is digits: no byte needs stuffing.

    Said again when it isn't answered soon: the guest of a fork may still be closing its parent's session, and
    drops what it reads meanwhile.
    """
    nonce = os.urandom(8).hex().encode()
    payload = b"\x01\x10\0\0\0" + nonce + b"\x02\x02\0\0\0\x01\0"
    hello = b"\x7e\x01" + bytes(7) + len(payload).to_bytes(4, "little") + payload + b"\x7e"
    deadline = time.monotonic() + LIMIT_S
    stream.settimeout(AGAIN_S)
    received = b""
    while not (nonce in received and received.endswith(b"\x7e")):
        if time.monotonic() > deadline:
            raise FloorError(f"no answer within {LIMIT_S:.0f} s")
        if not received:
            stream.sendall(hello)
        with suppress(TimeoutError):
            received += receive_until(stream, bool)


def put_parts(fork: Fork, source: Path) -> None:
    """Memory and state are linked. A raw disk is copied: a fork that runs writes to it."""
    fork.directory.mkdir()
    for part in source.iterdir():
        if part.name in PARTS:
            (fork.directory / part.name).hardlink_to(part)
        elif part.name == DISK:
            copy_holes(part, fork.directory / DISK)


def copy_holes(source: Path, destination: Path) -> None:
    """What is data in the file, and as long as it."""
    with source.open("rb") as origin, destination.open("xb") as copy:
        size = os.fstat(origin.fileno()).st_size
        os.truncate(copy.fileno(), size)
        end = 0
        with suppress(OSError):  # ENXIO: no data follows
            while end < size:
                start = os.lseek(origin.fileno(), end, os.SEEK_DATA)
                end = os.lseek(origin.fileno(), start, os.SEEK_HOLE)
                os.lseek(copy.fileno(), start, os.SEEK_SET)
                os.sendfile(copy.fileno(), origin.fileno(), start, end - start)


class Firecracker:
    """Forks of what `source` has: `mem` and `vmstate` of a guest with a vsock device, perhaps `disk.raw`."""

    def __init__(self, program: str, source: Path) -> None:
        self.program, self.source = program, source

    @classmethod
    def probe(cls, program: str, probe: Path, memory_mib: int, source: Path) -> Firecracker:
        """Of the probe guest: booted and saved here, in the new directory `source`."""
        made = cls(program, source)
        source.mkdir()
        warm = Fork(source)
        try:
            made.boot(warm, probe, memory_mib)
            made._api(warm, "PATCH", "/vm", state="Paused")
            kind = {"snapshot_type": "Full", "snapshot_path": "vmstate", "mem_file_path": "mem"}
            made._api(warm, "PUT", "/snapshot/create", **kind)
        finally:
            warm.end()
        # All of guest RAM was written, zeros too: without them there is less to write back while it is timed.
        subprocess.run(["fallocate", "--dig-holes", source / "mem"], check=True, timeout=LIMIT_S)
        os.sync()
        return made

    def boot(self, fork: Fork, probe: Path, memory_mib: int) -> None:
        """Not a fork: a guest that boots, in the fork's directory, until it has answered."""
        shutil.copyfile(probe, fork.directory / "kernel")
        configuration = {
            "boot-source": {"kernel_image_path": "kernel", "boot_args": "console=ttyS0"},
            "drives": [],
            "machine-config": {"vcpu_count": 1, "mem_size_mib": memory_mib},
            "vsock": {"guest_cid": 3, "uds_path": "vsock.sock"},
        }
        (fork.directory / "config.json").write_text(json.dumps(configuration))
        fork.process = self._spawn(fork.directory, "--config-file", "config.json")
        connect(fork.directory / "api.sock", fork.process).close()
        self._greet(fork)

    def start(self, fork: Fork) -> None:
        put_parts(fork, self.source)
        fork.mark()
        fork.process = self._spawn(fork.directory)
        connect(fork.directory / "api.sock", fork.process).close()
        fork.mark()
        memory = {"backend_type": "File", "backend_path": "mem"}
        self._api(fork, "PUT", "/snapshot/load", snapshot_path="vmstate", mem_backend=memory)
        fork.mark()
        self._api(fork, "PATCH", "/vm", state="Resumed")
        fork.mark()
        self._greet(fork)
        fork.mark()

    def _spawn(self, directory: Path, *words: str) -> subprocess.Popen[bytes]:
        with (directory / "log").open("wb") as log:
            return subprocess.Popen(
                [self.program, "--api-sock", "api.sock", *words],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _api(self, fork: Fork, method: str, path: str, **body: Any) -> None:
        assert fork.process is not None
        content = json.dumps(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with connect(fork.directory / "api.sock", fork.process) as stream:
            stream.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
            answer = receive_until(stream, lambda received: b"\r\n\r\n" in received)
        if b" 204 " not in answer.split(b"\r\n")[0]:
            raise FloorError(f"{method} {path}: {answer.decode(errors='replace')}")

    def _greet(self, fork: Fork) -> None:
        """The connection of a guest that boots and doesn't listen yet is closed at once, and made again."""
        assert fork.process is not None
        deadline = time.monotonic() + LIMIT_S
        while True:
            with connect(fork.directory / "vsock.sock", fork.process) as stream:
                stream.sendall(f"CONNECT {AGENT_PORT}\n".encode())
                try:
                    receive_until(stream, lambda received: received.endswith(b"\n"))
                except (FloorError, ConnectionResetError):
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(POLL_S)
                    continue
                greet(stream)
                return


class Qemu:
    """Forks of a template of ramet's."""

    def __init__(self, program: str, template: Path, source: Path) -> None:
        self.source = source
        self._release = (0, 0)
        source.mkdir()
        for name in ("mem", "vmstate"):
            (source / name).hardlink_to(template / name)
        whole = command_line(template)
        # `-append` takes several words here, up to the next option.
        whole = re.sub(r" -(kernel|initrd) \S+| -append .*?(?= -[a-z]|$)| -S\b| -incoming \S+", "", whole)
        self.words = [program, *whole.split(), "-S", "-incoming", "defer"]

    def start(self, fork: Fork) -> None:
        put_parts(fork, self.source)
        fork.mark()
        with self._spawned(fork) as monitor:
            self._execute(monitor, "qmp_capabilities")
            fork.mark()
            self._incoming(monitor, fork.directory / "vmstate")
            fork.mark()
            self._execute(monitor, "cont")
            fork.mark()
            assert fork.process is not None
            with connect(fork.directory / "agent0.sock", fork.process) as stream:
                greet(stream)
            fork.mark()

    def _give(self, monitor: socket.socket, descriptor: int, number: int) -> str:
        """Hand over an open file; how migration calls it then. From 9.1 on that is a set of descriptors, from
        11.0 on nothing else is taken.
        """
        if self._release >= (9, 1):
            self._execute(monitor, "add-fd", [descriptor], **{"fdset-id": number})
            return f"file:/dev/fdset/{number}"
        self._execute(monitor, "getfd", [descriptor], fdname=f"file{number}")
        return f"fd:file{number}"

    def _incoming(self, monitor: socket.socket, state: Path) -> None:
        with state.open("rb") as vmstate:
            uri = self._give(monitor, vmstate.fileno(), 0)
        events = [{"capability": "events", "state": True}]
        self._execute(monitor, "migrate-set-capabilities", capabilities=events)
        done = self._execute(monitor, "migrate-incoming", uri=uri)
        receive_until(monitor, lambda received: b'"completed"' in done + received)

    @contextmanager
    def _spawned(self, fork: Fork) -> Iterator[socket.socket]:
        """QEMU inherits its sockets, listening: they can be connected to at once."""
        listeners: list[socket.socket] = []

        def listen(found: re.Match[str]) -> str:
            name = "qmp" if found[1] == "qmp" else found[1]
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listeners.append(listener)
            with short(fork.directory / f"{name}.sock") as address:
                listener.bind(address)
            listener.listen(1)
            return f"socket,id={found[1]},fd={listener.fileno()},"

        try:
            words = [re.sub(r"^socket,id=(\w+),fd=\d+,", listen, word) for word in self.words]
            with (fork.directory / "log").open("wb") as log:
                fork.process = subprocess.Popen(
                    words,
                    cwd=fork.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[listener.fileno() for listener in listeners],
                )
        finally:
            for listener in listeners:
                listener.close()
        with connect(fork.directory / "qmp.sock", fork.process) as monitor:
            greeting = receive_until(
                monitor, lambda received: b'"QMP"' in received and received.endswith(b"\n")
            )
            version = json.loads(greeting)["QMP"]["version"]["qemu"]
            self._release = version["major"], version["minor"]
            yield monitor

    def _execute(
        self, monitor: socket.socket, command: str, fds: list[int] | None = None, **words: Any
    ) -> bytes:
        request = json.dumps({"execute": command, "arguments": words, "id": command}).encode()
        socket.send_fds(monitor, [request], fds or [])
        answered = f'"id": "{command}"'.encode()
        answer = receive_until(monitor, lambda received: answered in received and received.endswith(b"\n"))
        if b'"error"' in answer:
            raise FloorError(f"{command}: {answer.decode(errors='replace')}")
        return answer


def command_line(template: Path) -> str:
    """The words that a template's QEMU was started with, without the program: ramet logs them."""
    lines = (template / "vmm.log").read_text(errors="replace").splitlines()
    started = [line for line in lines if " -no-user-config " in line]
    if not started:
        raise FloorError(f"{template / 'vmm.log'} has no command line of QEMU")
    return started[-1][started[-1].index(" -no-user-config ") :]


def figures(values: list[float]) -> dict[str, float]:
    """Median and spread."""
    ordered = sorted(values)
    at = {"min": 0.0, "p10": 0.1, "p90": 0.9, "max": 1.0}
    found = {name: ordered[round(share * (len(ordered) - 1))] for name, share in at.items()}
    return {name: round(value, 3) for name, value in {"median": statistics.median(values), **found}.items()}


def memory_of(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """(proportional, private) bytes."""
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    found = {name: 1024 * int(kib) for name, kib in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
    return found["Pss"], found["Private_Dirty"] + found["Private_Clean"]


def cpu_of(pid: int) -> float:
    """Seconds of processor time of its threads that live, to the nanosecond where the kernel tells."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except FileNotFoundError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spread(directory: Path) -> None:
    """Let the forks' directories lie apart on the medium, where the filesystem can (chattr +T). Else, on
    ext4, it would depend on how many files were just removed what a fork costs: up to 0.7 ms a file.
    """
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = array("l", [0])
        with suppress(OSError):
            fcntl.ioctl(opened, FS_IOC_GETFLAGS, flags)
            flags[0] |= FS_TOPDIR_FL
            fcntl.ioctl(opened, FS_IOC_SETFLAGS, flags)
    finally:
        os.close(opened)


def round_of(vmm: Firecracker | Qemu, directory: Path, forks: int, concurrency: int) -> dict[str, Any]:
    """Starts the forks and ends them all. What they cost, while all of them were alive."""
    directory.mkdir()
    spread(directory)
    made = [Fork(directory / str(number)) for number in range(forks)]

    def start(fork: Fork) -> None:
        fork.marks = [time.perf_counter()]  # waiting for a turn isn't what a fork costs
        vmm.start(fork)

    try:
        with ThreadPoolExecutor(concurrency) as pool:
            own_s, started = time.process_time(), time.perf_counter()
            list(pool.map(start, made))
            wall_ms = 1000 * (time.perf_counter() - started)
            own_s = time.process_time() - own_s
        cpu_s = own_s + sum(cpu_of(fork.process.pid) for fork in made if fork.process is not None)
        memory = [memory_of(fork.process) for fork in made if fork.process is not None]
        links = (made[0].directory / "mem").stat().st_nlink
        started = time.perf_counter()
        reap(made, directory)
        reap_ms = 1000 * (time.perf_counter() - started)
        return {
            "wall_ms": wall_ms,
            "cpu_ms": 1000 * cpu_s,
            "reap_ms": reap_ms,
            "times_ms": [fork.times_ms() for fork in made],
            "pss_bytes": [use[0] for use in memory],
            "private_bytes": [use[1] for use in memory],
            "links": links,
        }
    finally:
        reap(made, directory)


def reap(forks: list[Fork], directory: Path) -> None:
    """End them all and remove their directories. Nothing happens the second time."""
    for fork in forks:
        if fork.process is not None:
            fork.process.kill()
    for fork in forks:
        fork.end()
    shutil.rmtree(directory, ignore_errors=True)


def main(words: list[str]) -> int:
    """Prints the figures. Returns 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description="What forks cost without ramet.")
    parser.add_argument("--vmm", choices=("firecracker", "qemu"), default="firecracker")
    parser.add_argument("--forks", type=int, default=10, metavar="N")
    parser.add_argument("--concurrency", type=int, default=3 * (os.cpu_count() or 1), metavar="K")
    parser.add_argument("--rounds", type=int, default=5, metavar="R")
    parser.add_argument(
        "--memory", default="512M", metavar="SIZE", help="of a Firecracker guest, as 512M or 4G"
    )
    parser.add_argument("--program", metavar="PATH", help="the VMM; default: as ramet finds it")
    parser.add_argument(
        "--probe", type=Path, default=ROOT / "src/ramet/guest/bin/probe-x86_64", metavar="FILE"
    )
    parser.add_argument("--template", type=Path, metavar="DIR", help="for QEMU: a template's directory")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where to work; for QEMU on its filesystem"
    )
    chosen = parser.parse_args(words)
    if chosen.vmm == "qemu" and chosen.template is None:
        parser.error("QEMU needs --template")
    if (
        not re.fullmatch(r"[1-9][0-9]*[MG]", chosen.memory)
        or min(chosen.forks, chosen.concurrency, chosen.rounds) < 1
    ):
        parser.error("a size is a number and M or G; forks, concurrency and rounds are at least 1")
    where = chosen.directory or (chosen.template.resolve().parent if chosen.template else None)
    try:
        with tempfile.TemporaryDirectory(prefix="floor-", dir=where) as scratch:
            print(json.dumps(measure(chosen, Path(scratch)), indent=2))
    except (FloorError, OSError, subprocess.SubprocessError) as error:
        print(f"floor: {error}", file=sys.stderr)
        return 1
    return 0


def measure(chosen: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    vmm: Firecracker | Qemu
    if chosen.vmm == "firecracker":
        kept = (
            Path(os.environ.get("RAMET_CACHE") or Path.home() / ".cache" / "ramet") / "tools" / "firecracker"
        )
        found = os.environ.get("RAMET_FIRECRACKER") or shutil.which("firecracker") or str(kept)
        program = chosen.program or found
        memory_mib = int(chosen.memory[:-1]) * (1024 if chosen.memory.endswith("G") else 1)
        vmm = Firecracker.probe(program, chosen.probe, memory_mib, scratch / "source")
    else:
        vmm = Qemu(
            chosen.program or os.environ.get("RAMET_QEMU") or "qemu-system-x86_64",
            chosen.template,
            scratch / "source",
        )
    rounds = [
        round_of(vmm, scratch / f"round-{number}", chosen.forks, chosen.concurrency)
        for number in range(chosen.rounds)
    ]
    times = [value for done in rounds for value in done["times_ms"]]
    walls = [done["wall_ms"] for done in rounds]
    mapped = (scratch / "source" / "mem").stat()
    return {
        "vmm": chosen.vmm,
        "memory_bytes": mapped.st_size,
        "memory_allocated_bytes": 512 * mapped.st_blocks,
        "cores": os.cpu_count(),
        "forks": chosen.forks,
        "concurrency": chosen.concurrency,
        "rounds": chosen.rounds,
        "wall_ms": figures(walls),
        "wall_ms_per_fork": round(statistics.median(walls) / chosen.forks, 3),
        "cpu_ms_per_fork": round(statistics.median(done["cpu_ms"] for done in rounds) / chosen.forks, 3),
        "fork_ms": {step: figures([value[step] for value in times]) for step in STEPS},
        "pss_bytes": figures([value for done in rounds for value in done["pss_bytes"]]),
        "private_bytes": figures([value for done in rounds for value in done["private_bytes"]]),
        "links": rounds[-1]["links"],
    }


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
