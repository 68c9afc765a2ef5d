"""Python programs that begin with their imports done: each is a process of its own, forked off one that has
them.

A command's first 0.4 s are imports, of which the tests would do thousands. What is forked has its own
arguments, environment, directory and streams, ends as a process ends, and is a child of the preloaded one.
What an interpreter fixes as it starts (`_FIXED_AT_START`) is as it was there; who wants it otherwise starts a
process of their own.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

ROOT: Final = Path(__file__).parents[2]
_FIXED_AT_START: Final = ("PYTHON", "LC_", "LANG")
"""Prefixes of variables that are read before `main` is."""
_REHEARSED: Final = {"ramet.cli.main": ("ps", "--all")}
"""By module: words of a call that imports what others will."""
_LONGEST: Final = 1 << 20
_STDIO: Final = 3


def can_run(environment: Mapping[str, str]) -> bool:
    """Whether a program in this environment finds its interpreter as it would be started."""

    def fixed(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in variables.items() if name.startswith(_FIXED_AT_START)}

    return fixed(environment) == fixed(os.environ)


def run(
    module: str,
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    limit_s: float,
    stdin: bytes | None = None,
    directory: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """`python -m MODULE WORDS`, to its end. The module's `main()` gives the exit code; it reads `sys.argv`.

    `stdin` is `/dev/null` unless given. Raises `subprocess.TimeoutExpired`; the program has been killed then.
    """
    argv = [module, *words]
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        out, err = _Reader(), _Reader()
        given: int | None = None
        with theirs:
            if stdin is None:
                source = os.open(os.devnull, os.O_RDONLY)
            else:
                source, given = os.pipe()
            request = {
                "argv": argv,
                "environment": dict(environment),
                "directory": os.fspath(directory or Path.cwd()),
            }
            _preloaded(module).ask(request, [source, out.end, err.end, theirs.fileno()])
            for descriptor in (source, out.end, err.end):
                os.close(descriptor)
        for reader in (out, err):
            reader.start()
        if given is not None:
            threading.Thread(target=_write_all, args=(given, stdin), daemon=True).start()
        ours.settimeout(limit_s)
        answers = ours.makefile()
        stack.callback(answers.close)
        pid = int(answers.readline())
        try:
            code = int(answers.readline())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(argv, limit_s) from None
        return subprocess.CompletedProcess(argv, code, out.all(limit_s), err.all(limit_s))


class _Reader(threading.Thread):
    """Reads a pipe until its writers are gone; `end` is where they write."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._read, self.end = os.pipe()
        self._data = b""

    def run(self) -> None:
        with open(self._read, "rb") as file:  # noqa: PTH123 - a descriptor
            self._data = file.read()

    def all(self, limit_s: float) -> bytes:
        self.join(limit_s)
        if self.is_alive():
            raise subprocess.TimeoutExpired("a process that has its output open", limit_s)
        return self._data


def _write_all(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(descriptor, "wb") as file:
        file.write(data)


class _Preloaded:
    """The process that has imported `module`; ends with this one, or when its socket is closed."""

    def __init__(self, module: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.preloaded", module, str(theirs.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._owner = os.getpid()
        atexit.register(self.close)

    def ask(self, request: Mapping[str, object], descriptors: Sequence[int]) -> None:
        """Have a program started with those descriptors: its streams, and where its pid and exit code go."""
        socket.send_fds(self._socket, [json.dumps(request).encode("utf-8", "surrogateescape")], descriptors)

    def close(self) -> None:
        """End it, once what it has started has ended."""
        if os.getpid() != self._owner:  # a process that a test has forked
            return
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
            return
        self._process.kill()
        self._process.wait()


@functools.cache
def _preloaded(module: str) -> _Preloaded:
    return _Preloaded(module)


def _serve(module: str, listening: socket.socket) -> Callable[[], int] | None:
    """Fork for each request. In the fork: its program, ready to be called; at the end: nothing."""
    main: Callable[[], int] = importlib.import_module(module).main
    # What is imported when `main` is called: all that a Host is made of, and what the loop and Typer want.
    importlib.import_module("ramet.api.host")
    importlib.import_module("anyio._backends._asyncio")
    if module in _REHEARSED:
        for name in _rehearse(main, [module, *_REHEARSED[module]]):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else a fork's first collection writes to every page
    living: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listening:
                    message, descriptors, _, _ = socket.recv_fds(listening, _LONGEST, _STDIO + 1)
                    if not message:
                        return None
                    answers = socket.socket(fileno=descriptors.pop())
                    pid = os.fork()
                    if pid == 0:
                        answers.close()
                        listening.close()
                        for pidfd, (_, other) in living.items():
                            os.close(pidfd)
                            other.close()
                        _become(json.loads(message), descriptors)
                        return main
                    for descriptor in descriptors:
                        os.close(descriptor)
                    answers.sendall(f"{pid}\n".encode())
                    pidfd = os.pidfd_open(pid)
                    living[pidfd] = pid, answers
                    selector.register(pidfd, selectors.EVENT_READ)
                else:
                    pidfd = key.fd
                    selector.unregister(pidfd)
                    pid, answers = living.pop(pidfd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    os.close(pidfd)
                    with answers, contextlib.suppress(BrokenPipeError):
                        answers.sendall(f"{code}\n".encode())


def _rehearse(main: Callable[[], int], argv: Sequence[str]) -> list[str]:
    """Call `main` in a fork, with an empty home; the modules that there are afterwards."""
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as out:
        pid = os.fork()
        if pid == 0:
            silent = os.open(os.devnull, os.O_RDWR)
            request = {"argv": argv, "environment": {**os.environ, "RAMET_HOME": home}, "directory": home}
            _become(request, [silent, os.dup(silent), os.dup(silent)])
            main()
            out.write("\n".join(sys.modules).encode())
            out.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        out.seek(0)
        return out.read().decode().split()


def _become(request: Mapping[str, object], descriptors: Sequence[int]) -> None:
    """Give this process its arguments, environment, directory and streams."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)
    argv, environment = request["argv"], request["environment"]
    assert isinstance(argv, list)
    assert isinstance(environment, dict)
    sys.argv = argv
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(str(request["directory"]))
    for name, mode in (("stdin", "rb"), ("stdout", "wb"), ("stderr", "wb")):
        before: io.TextIOWrapper = getattr(sys, name)
        raw = open(before.fileno(), mode, closefd=False)  # noqa: SIM115 - for as long as it lives
        line = name == "stderr" or raw.isatty()
        fresh = io.TextIOWrapper(raw, before.encoding, before.errors, line_buffering=line)
        setattr(sys, name, fresh)


def _end(main: Callable[[], int]) -> NoReturn:
    """Call it and end as an interpreter does, but for taking down the modules: that would copy all their
    pages.
    """
    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[2])) as _listening:
        _main = _serve(sys.argv[1], _listening)
    if _main is not None:
        _end(_main)
