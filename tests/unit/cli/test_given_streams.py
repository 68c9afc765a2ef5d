"""Standard streams as other programs give them: non-blocking, slow, full, closed, the wrong way round."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import ramet
from ramet.cli import descriptors, output
from tests.conftest import living_in
from tests.support.shell import COMMAND, LIMIT_S, Shell, read_terminal

MANY_BYTES = 1 << 20
PATTERN = bytes(range(256)) * 16


@contextmanager
def pipe(*, nonblocking: str = "") -> Iterator[tuple[int, int]]:
    """Both ends of a pipe; those named, `r` and `w`, don't block."""
    reader, writer = os.pipe()
    for name, end in (("r", reader), ("w", writer)):
        os.set_blocking(end, name not in nonblocking)
    try:
        yield reader, writer
    finally:
        for end in (reader, writer):
            with suppress(OSError):  # EBADF: the test has closed it
                os.close(end)


def read_slowly(descriptor: int, pause_s: float = 0.0005) -> bytes:
    """All of it, in small pieces with pauses: the writer has to wait."""
    found = bytearray()
    while True:
        select.select([descriptor], [], [])
        if not (data := os.read(descriptor, 16384)):
            return bytes(found)
        found += data
        time.sleep(pause_s)


class TestDescriptors:
    @pytest.mark.parametrize("nonblocking", ["", "w"])
    def test_every_byte_is_written_and_no_flag_is_changed(self, nonblocking: str) -> None:
        data = os.urandom(1 << 20)
        with pipe(nonblocking=nonblocking) as (reader, writer):
            before = fcntl.fcntl(writer, fcntl.F_GETFL)
            heard: list[bytes] = []
            thread = threading.Thread(target=lambda: heard.append(read_slowly(reader)))
            thread.start()
            descriptors.write_all(writer, data)
            assert fcntl.fcntl(writer, fcntl.F_GETFL) == before
            os.close(writer)
            thread.join()
            assert heard == [data]

    def test_nothing_yet_is_not_the_end(self) -> None:
        with pipe(nonblocking="r") as (reader, writer):
            threading.Timer(0.3, lambda: os.write(writer, b"late")).start()
            assert descriptors.read_some(reader, 100) == b"late"
            os.close(writer)
            assert descriptors.read_some(reader, 100) == b""

    def test_a_checkpoint_ends_the_wait(self) -> None:
        def stop() -> None:
            raise InterruptedError

        with pipe(nonblocking="rw") as (reader, writer):
            with pytest.raises(InterruptedError):
                descriptors.write_all(writer, bytes(1 << 20), stop)
            os.set_blocking(reader, False)
            while select.select([reader], [], [], 0)[0]:
                os.read(reader, 1 << 20)
            with pytest.raises(InterruptedError):
                descriptors.read_some(reader, 1, stop)


def test_the_command_line_writes_in_one_way() -> None:
    """`output` writes, by `descriptors`, to whatever `take_over` has put under Python's streams; `streams`
    passes bytes on.
    """
    room = Path(output.__file__).parent
    forbidden = re.compile(r"\bprint\(|sys\.std(out|err)|sys\.__std|typer\.(echo|secho)|os\.write\(|click\b")
    found = {path.name for path in room.glob("*.py") if forbidden.search(path.read_text())}
    assert found <= {"output.py", "descriptors.py", "streams.py", "main.py"}
    users = {path.name for path in room.glob("*.py") if "cli.descriptors" in path.read_text()}
    assert users == {"output.py"}
    uses = [line for line in (room / "main.py").read_text().splitlines() if forbidden.search(line)]
    assert [use.strip() for use in uses] == ["sys.stdout.flush()"]


def test_nobody_makes_a_shared_descriptor_non_blocking() -> None:
    """O_NONBLOCK is the open file's: the user's shell would have it, too."""
    source = Path(ramet.__file__).parent
    found = {
        str(path.relative_to(source)): line.strip()
        for path in source.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"set_blocking\(|F_SETFL|FIONBIO", line)
    }
    assert found == {"system/outside.py": "os.set_blocking(descriptor, False)  # our ends of our pipes"}


BIG = "from ramet.cli import output; output.take_over(); "


@pytest.mark.parametrize(
    "how", ["output.say('é' * 1000000)", "print('é' * 1000000)", "output.emit('é' * 1000000)"]
)
def test_a_slow_reader_of_a_non_blocking_pipe_gets_everything(how: str) -> None:
    with pipe(nonblocking="w") as (reader, writer):
        words = [sys.executable, "-c", f"{BIG}text = 'é' * 1000000; {how}"]
        with subprocess.Popen(words, stdout=writer, env={**os.environ, "LC_ALL": "C.UTF-8"}) as process:
            os.close(writer)
            heard = read_slowly(reader)
        assert process.returncode == 0
    assert heard.decode().strip('\n"') == "é" * 1000000


@pytest.mark.slow
def test_rich_and_tracebacks_go_the_same_way() -> None:
    code = BIG + "from rich.console import Console; Console().print('x\\n' * 50000); 1 / 0"
    with pipe(nonblocking="w") as (reader, writer):
        with subprocess.Popen([sys.executable, "-c", code], stdout=writer, stderr=writer) as process:
            os.close(writer)
            heard = read_slowly(reader)
        assert process.returncode == 1
    assert heard.count(b"x\n") == 50000
    assert heard.rstrip().endswith(b"ZeroDivisionError: division by zero")


def test_a_stream_that_somebody_put_there_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", mine)
    output.take_over()
    assert sys.stdout is mine
    output.say("x")
    assert mine.buffer.getvalue() == b"x\n"


@pytest.mark.parametrize("opened", ["/dev/null", pytest.param("/dev/zero", marks=pytest.mark.slow)])
def test_an_output_that_is_open_for_reading_only_is_an_error(ramet: Shell, opened: str) -> None:
    with Path(opened).open("rb") as wrong:
        process = ramet.start("ps", stdout=wrong)
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert said == b"ramet: Bad file descriptor\n"


@pytest.mark.parametrize("words", ["--help", pytest.param("ps", marks=pytest.mark.slow), "nosuch"])
def test_what_is_appended_to_stays(ramet: Shell, tmp_path: Path, words: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    with log.open("ab") as out:
        ramet.start(words, stdout=out, stderr=out).communicate(timeout=LIMIT_S)
    assert log.read_bytes().startswith(b"before\n")
    assert log.read_bytes().count(b"\n") > 1


@pytest.mark.slow
def test_an_interrupt_ends_the_wait_for_a_reader(ramet: Shell) -> None:
    """The loop that hears of signals isn't running then."""
    code = (
        "import sys, signal\n"
        "from ramet.cli import calling, output\n"
        "output.take_over()\n"
        "async def body():\n"
        "    output.warn('now')\n"
        "    output.say('x' * 1000000)\n"
        "    return 0\n"
        "try:\n"
        "    calling.call(body, json=True)\n"
        "except BaseException as error:\n"
        "    sys.exit(getattr(error, 'exit_code', repr(error)))\n"
    )
    for nonblocking in ("", "w"):
        for number in (signal.SIGINT, signal.SIGTERM):
            with pipe(nonblocking=nonblocking) as (_, writer):
                words = [sys.executable, "-c", code]
                with subprocess.Popen(words, stdout=writer, stderr=subprocess.PIPE) as process:
                    assert process.stderr is not None
                    assert process.stderr.readline() == b"now\n"
                    time.sleep(0.3)
                    process.send_signal(number)
                    assert process.wait(timeout=LIMIT_S) == 128 + number
                    assert process.stderr.read() == b""


def test_help_that_nobody_reads(ramet: Shell) -> None:
    with pipe() as (reader, writer):
        os.close(reader)
        process = ramet.start("--help", stdout=writer)
        _, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, said) == (141, b"")


@pytest.mark.parametrize(
    "columns",
    ["1", *(pytest.param(odd, marks=pytest.mark.slow) for odd in ("0", "-5", "²", "garbage", "99999999999"))],
)
def test_columns_may_say_anything(ramet: Shell, columns: str) -> None:
    controller, terminal = pty.openpty()
    ramet.environment |= {"COLUMNS": columns, "TERM": "xterm"}
    process = ramet.start("image", "ls", stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b"".join(read_terminal(controller))
    os.close(controller)
    assert process.wait(timeout=LIMIT_S) == 0, shown
    assert b"builtin" in re.sub(rb"[\s]|\x1b\[[0-9;]*m", b"", shown)


@pytest.mark.slow
def test_a_dumb_terminal_and_no_colour(ramet: Shell) -> None:
    for variables in ({"TERM": "dumb"}, {"NO_COLOR": "1", "TERM": "xterm"}):
        controller, terminal = pty.openpty()
        ramet.environment.update(variables)
        process = ramet.start("image", "ls", stdout=terminal, stderr=terminal)
        os.close(terminal)
        shown = b"".join(read_terminal(controller))
        os.close(controller)
        assert process.wait(timeout=LIMIT_S) == 0
        assert not re.search(rb"\x1b\[[0-9;]*3[0-9]", shown), shown


@pytest.mark.vm
class TestWithAGuest:
    def test_logs_into_a_non_blocking_pipe(self, guest: Shell) -> None:
        line = "x" * 1000
        guest(
            "exec",
            "box",
            "sh",
            "-c",
            f"i=0; while [ $i -lt 200 ]; do echo {line} >/dev/console; i=$((i+1)); done",
        )
        whole = guest("logs", "box").stdout
        assert len(whole) > 64 * 1024
        with pipe(nonblocking="w") as (reader, writer):
            process = guest.start("logs", "box", stdout=writer)
            os.close(writer)
            heard = read_slowly(reader)
            assert process.wait(timeout=LIMIT_S) == 0
        assert heard == whole

    @pytest.mark.parametrize(
        ("stream", "nonblocking"),
        [
            *(("stdout", ""), ("stderr", "w")),
            *(pytest.param(*other, marks=pytest.mark.deep) for other in (("stdout", "w"), ("stderr", ""))),
        ],
    )
    def test_exec_hands_bytes_through(self, guest: Shell, nonblocking: str, stream: str) -> None:
        script = f"head -c {MANY_BYTES} /dev/zero | tr '\\0' '\\377'; printf 'a\\000\\r\\nb'"
        with pipe(nonblocking=nonblocking) as (reader, writer):
            script = f"({script}) >&2" if stream == "stderr" else script
            process = guest.start("exec", "box", "sh", "-c", script, **{stream: writer})
            os.close(writer)
            heard = read_slowly(reader)
            assert process.wait(timeout=LIMIT_S) == 0
        assert len(heard) == MANY_BYTES + 5
        assert heard == b"\xff" * MANY_BYTES + b"a\0\r\nb"

    def test_exec_reads_a_non_blocking_pipe_to_its_end(self, guest: Shell) -> None:
        data = os.urandom(300_000)
        with pipe(nonblocking="rw") as (reader, writer):
            process = guest.start("exec", "box", "sha256sum", stdin=reader)
            time.sleep(0.5)  # nothing is there when it begins to read
            for at in range(0, len(data), 50_000):
                descriptors.write_all(writer, data[at : at + 50_000])
                time.sleep(0.05)
            assert not os.get_blocking(reader), "the flag is the test's"
            os.close(writer)
            said, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0
        assert said.split()[0].decode() == hashlib.sha256(data).hexdigest()

    def test_an_input_that_cannot_be_read_is_none(self, guest: Shell) -> None:
        """As nohup(1) gives it."""
        with Path("/dev/null").open("wb") as unreadable:
            process = guest.start("exec", "box", "cat", stdin=unreadable)
            assert process.communicate(timeout=LIMIT_S) == (b"", b"")
        assert process.returncode == 0

    def test_with_closed_streams_a_command_runs(self, guest: Shell) -> None:
        for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
            script = f"{' '.join(COMMAND)} exec box sh -c 'cat; echo out; echo err >&2; exit 7' {closed}"
            done = subprocess.run(
                ["sh", "-c", script],
                env=guest.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=LIMIT_S,
                check=False,
            )
            assert done.returncode == 7, (closed, done)
            assert done.stdout == (b"" if ">&-" in closed.replace("2>&-", "") else b"out\n")

    def test_without_a_terminal_at_all(self, guest: Shell) -> None:
        """As from cron: no controlling terminal, hardly an environment."""
        environment = {
            name: guest.environment[name]
            for name in ("PATH", "RAMET_HOME", "RAMET_CACHE", "HOME", "RAMET_DRIVER")
            if name in guest.environment
        }
        without = ["setsid", "-w", "env", "-i", *(f"{name}={value}" for name, value in environment.items())]
        done = subprocess.run(
            [*without, *COMMAND, "exec", "box", "sh", "-c", "cat; echo é"],
            input=b"in\n",
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "in\né\n".encode())


def test_none_of_these_tests_leaves_a_process(ramet: Shell) -> None:
    assert living_in(ramet.home) == []
