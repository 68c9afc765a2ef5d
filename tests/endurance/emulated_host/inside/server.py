"""Runs commands in the emulated host, one at a time, for `tests.endurance.emulated_host.machine`.

Both sides write a JSON document a line on a virtio-serial port. The host asks `{"argv": …, "env": …,
"timeout_s": …}`; the answers are `{"out": TEXT}` as the command writes, on either of its outputs, and at last
`{"code": N}`: its exit code, 128 and the signal's number, 127 when it can't be started, 124 after its time.
The first line is `{"ready": true}`, and `{"alive": UPTIME_S}` comes every few seconds, whatever else goes on.
The host sends empty lines to interrupt this machine: nothing is made of them.
Only the standard library is needed.
"""

from __future__ import annotations

import codecs
import json
import os
import queue
import select
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

PORT = "emulated-host"
ALIVE_EVERY_S = 2

_sending = threading.Lock()


def open_port() -> BinaryIO:
    """The port of our name, whatever its number is."""
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == PORT:
            return open(f"/dev/{name.parent.name}", "r+b", buffering=0)  # noqa: PTH123
    raise SystemExit(f"there is no port {PORT}")


def send(port: BinaryIO, message: dict[str, Any]) -> None:
    """Write one line, all of it."""
    rest = memoryview(json.dumps(message).encode() + b"\n")
    with _sending:
        while rest:
            rest = rest[port.write(rest) :]


def run(port: BinaryIO, argv: list[str], env: dict[str, str], timeout_s: float) -> int:
    """Run a command in a session of its own; pass on what it writes. Whatever it leaves behind goes on."""
    try:
        child = subprocess.Popen(
            argv,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        send(port, {"out": f"{argv[0]}: {error.strerror}\n"})
        return 127
    assert child.stdout is not None
    until = time.monotonic() + timeout_s
    text = codecs.getincrementaldecoder("utf-8")("replace")
    pidfd = os.pidfd_open(child.pid)
    waiting = select.poll()
    for descriptor in (child.stdout.fileno(), pidfd):
        waiting.register(descriptor, select.POLLIN)
    ended = late = False
    while not ended:
        ready = dict(waiting.poll(max(0.0, until - time.monotonic()) * 1000))
        if not ready and not late:
            late, until = True, time.monotonic() + 60
            os.killpg(child.pid, signal.SIGKILL)
        # A process that the command left behind may hold its output open: the end of the command is the end.
        ended = pidfd in ready and child.stdout.fileno() not in ready
        if child.stdout.fileno() in ready:
            if chunk := os.read(child.stdout.fileno(), 65536):
                send(port, {"out": text.decode(chunk)})
            else:
                waiting.unregister(child.stdout.fileno())
    os.close(pidfd)
    child.stdout.close()
    code = child.wait()
    return 124 if late else code if code >= 0 else 128 - code


def show_life(port: BinaryIO) -> None:
    """For as long as the program runs."""
    while True:
        time.sleep(ALIVE_EVERY_S)
        send(port, {"alive": time.clock_gettime(time.CLOCK_BOOTTIME)})


def listen(port: BinaryIO, asked: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Take in lines as they come, also while a command runs: the port has room for few. None ends them."""
    buffer = b""
    while chunk := port.read(65536):
        buffer += chunk
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            if line:
                asked.put(json.loads(line))
    asked.put(None)


def main() -> None:
    """Serve until the port is closed."""
    asked: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    with open_port() as port:
        send(port, {"ready": True})
        threading.Thread(target=show_life, args=(port,), daemon=True).start()
        threading.Thread(target=listen, args=(port, asked), daemon=True).start()
        while (command := asked.get()) is not None and command["argv"]:
            send(port, {"code": run(port, **command)})


if __name__ == "__main__":
    main()
