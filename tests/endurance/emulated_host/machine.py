"""The emulated host as an object: boots, runs commands, is gone afterwards whatever happens."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from ramet import config
from tests.endurance.emulated_host import tree
from tests.endurance.emulated_host.inside.server import ALIVE_EVERY_S, PORT
from tests.endurance.emulated_host.root import cache, find_root

BOOT_LIMIT_S: Final = 240
_ANSWER_LIMIT_S: Final = 120
"""How long an answer may take beyond the time that the command itself is given."""
_READ_LIMIT_S: Final = 60
_SILENCE_LIMIT_S: Final = 180
"""The server shows life every few seconds; a busy machine may hold it up, but not for so long."""
_INTERRUPT_AFTER_S: Final = 3 * ALIVE_EVERY_S
_MONITOR_LIMIT_S: Final = 5
_END_LIMIT_S: Final = 30
_ABANDONED_AFTER_S: Final = 24 * 3600
_LINE_LIMIT_BYTES: Final = 16 << 20
_MACHINE: Final = (
    # The emulated processor has AMD's virtualization, so the kernel's ordinary kvm-amd works on it. One of
    # them. With two, the kernel patching its own code while both run it (a VM that is made or gone turns a
    # static key in the scheduler) now and then leaves one in a stale translation for ever, interrupts off.
    *("-machine", "q35", "-cpu", "max,la57=off,+svm,+npt", "-accel", "tcg,tb-size=1024"),
    *("-m", "6144", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
    *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
)
_KERNEL_LINE: Final = "console=ttyS0 quiet panic=-1 reboot=k no_timer_check tsc=reliable mitigations=off"


class Done(NamedTuple):
    """A command that has ended: 124 when its time was up, 128 and the number when a signal ended it."""

    code: int
    output: str


class HostDiedError(Exception):
    """The emulated host ended, or stopped answering. Carries what its console said last."""


class EmulatedHost:
    """A Linux host with a KVM that runs Linux, and this tree of ramet in it.

    Used with `with`: entering boots it, leaving ends it. `timings_s` says how long packing and booting took.
    Raises `UnavailableError` where it can't be made, `HostDiedError` when it doesn't come up or goes down;
    its QEMU and its files are gone then. Should this process be killed, the kernel kills QEMU.
    """

    def __init__(self, *, shell: bool = False) -> None:
        self._shell = shell
        _gc(cache())
        self._directory = tempfile.TemporaryDirectory(prefix="run-", dir=cache())
        self._console = Path(self._directory.name, "console.log")
        self._qemu: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None
        self._buffer = b""
        self.peak_bytes = 0
        self.interrupts = 0
        self.timings_s: dict[str, float] = {}

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        argv: Sequence[str],
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        *,
        live: bool = True,
    ) -> Done:
        """Run a command as root in `/ramet/tree`, its outputs together; with `live` printed as they come.

        After `timeout_s` its processes are killed. Raises `HostDiedError`.
        """
        self._send({"argv": list(argv), "env": dict(env or {}), "timeout_s": timeout_s})
        output: list[str] = []
        for answer in self._answers(timeout_s + _ANSWER_LIMIT_S):
            if "code" in answer:
                return Done(answer["code"], "".join(output))
            output.append(answer["out"])
            if live:
                sys.stdout.write(answer["out"])
                sys.stdout.flush()
        raise AssertionError("the answers end with a code or an error")

    def read(self, path: str) -> str:
        """A text file of the host; empty when it can't be read. Raises `HostDiedError`."""
        done = self.run(["cat", path], _READ_LIMIT_S, live=False)
        return done.output if done.code == 0 else ""

    @property
    def directory(self) -> Path:
        """Where it lies, while it is there."""
        return Path(self._directory.name)

    @property
    def pid(self) -> int:
        """Of its QEMU."""
        assert self._qemu is not None, "the host isn't running"
        return self._qemu.pid

    def wait(self) -> None:
        """Until the host has turned itself off, with no limit: for a person in its shell."""
        assert self._qemu is not None
        self._qemu.wait()

    def console(self) -> str:
        """The end of what the host's kernel and start-up have said."""
        try:
            return self._console.read_text(errors="replace")[-4000:]
        except OSError:
            return ""

    def close(self) -> None:
        """End QEMU and remove its files. Harmless when done twice."""
        if self._qemu is not None:
            self.peak_bytes = self.peak_bytes or _peak_bytes(self._qemu.pid)
            self._qemu.kill()
            self._qemu.wait(_END_LIMIT_S)
            self._qemu = None
        if self._port is not None:
            self._port.close()
            self._port = None
        self._directory.cleanup()

    def _boot(self) -> None:
        root = self._timed("root", find_root)
        disk = Path(self._directory.name, "tree.ext4")
        self._timed("pack", lambda: tree.pack(disk, root))
        ours, theirs = socket.socketpair()
        self._port = ours
        size = shutil.get_terminal_size()
        mode = f"shell terminal={size.lines}x{size.columns}" if self._shell else "server"
        line = f"{_KERNEL_LINE} emulated-host={mode} "
        serial = ["-serial", "mon:stdio"] if self._shell else ["-serial", f"file:{self._console}"]
        words = [
            *("setpriv", "--pdeathsig", "KILL", *_on_one_cpu(), config.qemu_binary()),
            *("-name", "emulated-host", *_MACHINE),
            *("-kernel", root.kernel, "-initrd", root.initramfs, "-append", line, *serial),
            # What the host writes on its root goes to a temporary file that QEMU has unlinked.
            *("-drive", f"file={root.image},format=raw,if=virtio,snapshot=on,cache=unsafe"),
            *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
            *("-chardev", f"socket,id=port,fd={theirs.fileno()}"),
            *("-device", f"virtserialport,chardev=port,name={PORT}"),
            *("-monitor", f"unix:{self._directory.name}/monitor,server=on,wait=off"),
        ]
        with theirs:
            self._qemu = subprocess.Popen(
                words,
                stdin=None if self._shell else subprocess.DEVNULL,
                stdout=None if self._shell else subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"TMPDIR": self._directory.name},
            )
        if not self._shell:
            self._timed("boot", lambda: next(self._answers(BOOT_LIMIT_S)))
            disk.unlink()  # QEMU has it open. So it goes with QEMU, also when this process is killed.

    def _timed(self, what: str, step: Any) -> Any:
        started = time.monotonic()
        result = step()
        self.timings_s[what] = round(time.monotonic() - started, 2)
        return result

    def _send(self, message: Mapping[str, Any]) -> None:
        self._send_line(json.dumps(message).encode() + b"\n")

    def _send_line(self, line: bytes) -> None:
        assert self._port is not None, "the host isn't running"
        self._port.settimeout(_ANSWER_LIMIT_S)
        try:
            self._port.sendall(line)
        except OSError as error:
            raise self._died(str(error)) from error

    def _answers(self, limit_s: float) -> Iterator[dict[str, Any]]:
        """What the server says, for `limit_s` at most and while it shows life."""
        assert self._port is not None, "the host isn't running"
        until = time.monotonic() + limit_s
        while True:
            silent_since = time.monotonic()
            while b"\n" not in self._buffer:
                left_s = min(until, silent_since + _SILENCE_LIMIT_S) - time.monotonic()
                self._port.settimeout(max(0.01, min(left_s, _INTERRUPT_AFTER_S)))
                try:
                    chunk = self._port.recv(65536)
                except TimeoutError:
                    if left_s > _INTERRUPT_AFTER_S:
                        self._interrupt()
                        continue
                    why = f"no sign of life for {time.monotonic() - silent_since:.0f} s"
                    raise self._died(f"{why}; {self._processors()}") from None
                if not chunk or len(self._buffer) > _LINE_LIMIT_BYTES:
                    raise self._died("its QEMU has ended" if not chunk else "it sends lines without end")
                self._buffer += chunk
            line, _, self._buffer = self._buffer.partition(b"\n")
            answer = json.loads(line)
            if "alive" not in answer:
                yield answer
            elif time.monotonic() > until:
                raise self._died(f"no answer within {limit_s:g} s")

    def _interrupt(self) -> None:
        """Interrupt a host that may have lost an interrupt: an empty line, which the server skips.

        Seen: the processor halted with the timer's interrupt pending (IRR 236, HLT=1), for ever unless a
        device interrupts it. `_on_one_cpu` has the reason.
        """
        assert self._port is not None
        self.interrupts += 1
        print(f"the emulated host: silent for {_INTERRUPT_AFTER_S} s, so it is interrupted")
        self._send_line(b"\n")

    def _processors(self) -> str:
        """What the emulated processors are at: tells a host that hangs from one that is slow."""
        said = b""
        try:
            with socket.socket(socket.AF_UNIX) as monitor:
                monitor.settimeout(_MONITOR_LIMIT_S)
                monitor.connect(f"{self._directory.name}/monitor")
                monitor.sendall(b"info registers -a\ninfo lapic\n")
                while len(said) < 65536:
                    said += monitor.recv(4096) or b"\0" * 65536
        except OSError:
            pass
        words = re.findall(r"CPU#\d+|RIP=\w+|RFL=\w+|HLT=\d|I[SR]R\t.*", said.decode(errors="replace"))
        return f"its processors: {' '.join(words) or 'the monitor is silent too'}"

    def _died(self, why: str) -> HostDiedError:
        return HostDiedError(f"the emulated host: {why}; its console:\n{self.console()}")


def _on_one_cpu() -> tuple[str, ...]:
    """The words that keep QEMU on one of our CPUs.

    QEMU 7.2 has what a processor must look at in one word, `interrupt_request`. VMRUN and VM exit
    (target/i386/tcg/sysemu/svm_helper.c) change bits of it, not atomically, while another thread may be
    setting the timer's: on two CPUs one of the changes is lost now and then. On one CPU it is one instruction
    that nothing cuts in two. Two busy threads are rare, so that costs little. The workers of a test run take
    different ones.
    """
    ours = sorted(os.sched_getaffinity(0), reverse=True)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return ("taskset", "--cpu-list", str(ours[worker % len(ours)]))


def _gc(directory: Path) -> None:
    """Remove what killed runs have left."""
    for left in (*directory.glob("run-*"), *directory.glob("making-*")):
        try:
            old = left.stat().st_mtime < time.time() - _ABANDONED_AFTER_S
        except OSError:
            continue
        if old:
            shutil.rmtree(left, ignore_errors=True)


def _peak_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
