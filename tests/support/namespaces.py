"""Other namespaces of the kernel, real ones: programs that see other processes, mounts or times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ramet.model.record import ProcessRef
from ramet.system import liveness
from tests.support.shell import run_command

PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
PID_NAMESPACE_ALONE = ("unshare", "--pid", "--fork", "--kill-child")
"""Its /proc is still the one of the namespace above."""
LIMIT_S = 120


def require(*words: str) -> None:
    """Skip the test where that namespace can't be had."""
    if os.geteuid() != 0:
        pytest.skip("a namespace wants root")
    tried = subprocess.run([*words, "true"], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if tried.returncode != 0:
        pytest.skip(f"{' '.join(words)}: {tried.stderr.strip()}")


def ramet_in(
    words: Sequence[str], home: Path, *command: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`ramet COMMAND` on `home`, started with `words` before it. To its end, whatever the exit code."""
    variables = {**os.environ, "RAMET_HOME": str(home), **environment}
    if not words:
        done = run_command(command, variables)
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)
    return subprocess.run(
        [*words, sys.executable, "-m", "ramet.cli.main", *command],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def json_in(words: Sequence[str], home: Path, *command: str) -> Any:
    """The document that `ramet COMMAND --json` prints there."""
    done = ramet_in(words, home, *command, "--json")
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return msgspec.json.decode(done.stdout)


def liveness_in(words: Sequence[str], process: ProcessRef) -> str:
    """The liveness of `process` as a program says that was started with `words` before it."""
    script = (
        "import sys, msgspec; from ramet.system import liveness; from ramet.model.record import ProcessRef;"
        "print(liveness.liveness(msgspec.json.decode(sys.argv[1], type=ProcessRef)).value)"
    )
    told = msgspec.json.encode(process).decode()
    done = subprocess.run(
        [*words, sys.executable, "-c", script, told],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def sleeper(*words: str) -> Iterator[tuple[ProcessRef, subprocess.Popen[str]]]:
    """A process that sleeps, started with `words` before it, as it names itself."""
    script = (
        "import time, msgspec; from ramet.system import process_ref;"
        "print(msgspec.json.encode(process_ref.this_process()).decode(), flush=True); time.sleep(600)"
    )
    with subprocess.Popen([*words, sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield msgspec.json.decode(child.stdout.readline(), type=ProcessRef), child
        finally:
            child.kill()


def end(process: ProcessRef) -> None:
    """SIGKILL it, wherever it is, and wait for its end."""
    pidfd = liveness.open_pidfd(process)
    if pidfd is not None:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    while liveness.is_alive(process):
        pass
