"""The terminal: tables that fit, colours where they are wanted, a line of progress that goes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import deque
from pathlib import Path

import pytest

from ramet.cli import output, tables, widths
from ramet.cli.progress import _Line, describe, duration, working
from ramet.paths import Home
from ramet.progress import Progress, received_by, report
from ramet.store.records import Store
from tests.support.shell import LIMIT_S, Shell, read_terminal
from tests.support.stored_homes import record

LONG = "a-name-of-sixty-three-characters-which-is-the-longest-of-all-01"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PLAIN = {
    "TERM": "xterm",
    **dict.fromkeys(("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR", "COLUMNS"), ""),
}


def on_terminal(ramet: Shell, *words: str, columns: int = 80, code: int = 0, **variables: str) -> str:
    """Run `ramet` with its output on a terminal of that width, and return what the terminal got."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
    ramet.environment |= PLAIN | variables
    process = ramet.start(*words, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b"".join(read_terminal(controller))
    os.close(controller)
    assert process.wait(timeout=LIMIT_S) == code, shown
    return shown.decode().replace("\r\n", "\n")


@pytest.fixture
def crowded(stored: Home) -> Home:
    """The home of `stored`, with an instance of the longest name."""
    store = Store(stored.database)
    store.add([record(LONG, "cccc33334444")])
    store.close()
    return stored


class TestTables:
    @pytest.mark.parametrize(
        ("words", "columns"),
        [
            *(("ps -a", columns) for columns in (20, 40, 80, 100, 200)),
            *((words, 40) for words in ("image ls", "kernel ls", "snapshot ls", "tree", "pool")),
            ("tree", 20),
            ("image ls", 80),
        ],
    )
    def test_no_line_is_wider_than_the_terminal(
        self, ramet: Shell, crowded: Home, words: str, columns: int
    ) -> None:
        shown = COLOUR.sub("", on_terminal(ramet, *words.split(), columns=columns))
        table = [line for line in shown.splitlines() if not line.startswith("no process keeps")]
        assert max(map(widths.width_of, table)) <= columns, shown

    def test_columns_overrides_the_terminal(self, ramet: Shell, crowded: Home) -> None:
        shown = COLOUR.sub("", on_terminal(ramet, "ps", "-a", columns=200, COLUMNS="40"))
        assert max(map(len, shown.splitlines())) <= 40

    def test_long_names_are_shortened_where_it_can_be_seen(self, ramet: Shell, crowded: Home) -> None:
        shown = COLOUR.sub("", on_terminal(ramet, "ps", "-a", columns=100))
        [line] = [line for line in shown.splitlines() if "cccc33334444" in line]
        assert re.match(r"a-name-\S+…\S+-01 +cccc33334444", line), line
        assert "first" in shown

    def test_a_wide_terminal_shortens_nothing(self, ramet: Shell, crowded: Home) -> None:
        assert LONG in on_terminal(ramet, "ps", "-a", columns=200)

    @pytest.mark.parametrize("columns", [20, 40])
    def test_a_narrow_terminal_has_a_block_for_each_row(
        self, ramet: Shell, crowded: Home, columns: int
    ) -> None:
        shown = COLOUR.sub("", on_terminal(ramet, "ps", "-a", columns=columns))
        assert len(re.findall(r"^ID +\w{12}$", shown, re.MULTILINE)) == 3
        assert "…" not in shown
        assert LONG in re.sub(r"\s", "", shown)

    def test_nothing_is_lost_in_a_pipe_or_in_json(self, ramet: Shell, crowded: Home) -> None:
        ramet.environment |= {"COLUMNS": "40"}
        lines = ramet("ps", "-a").stdout.decode().splitlines()
        assert [line.split()[0] for line in lines] == ["NAME", "first", "second", LONG]
        assert LONG in [entry["name"] for entry in ramet.json("ps", "-a", "--json")]

    def test_without_the_character_of_shortening(self, ramet: Shell, crowded: Home) -> None:
        ramet.environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        shown = on_terminal(ramet, "ps", "-a", columns=100)
        assert re.search(r"a-name-\S+\.\.\S+-01 ", shown)

    @pytest.mark.parametrize("width", range(1, 20))
    def test_shortened_text_has_its_width_and_its_ends(self, width: int) -> None:
        for text in ("abcdefghijklmnop", "名前がとても長いもの", "a名b前c"):
            for mark in ("…", ".."):
                shown = widths.shorten(text, width, mark=mark)
                assert widths.width_of(shown) <= width
                if width >= 6 and shown != text:
                    assert shown[0] == text[0]
                    assert mark in shown
                    assert shown[-1] == text[-1]

    def test_columns_that_cannot_be_fitted(self) -> None:
        headers = ("NAME", "ID")
        rows = [["x" * 40, "i" * 12]]
        assert tables.fit(headers, rows, None) == ([40, 12], 2)
        assert tables.fit(headers, rows, 54) == ([40, 12], 2)
        assert tables.fit(headers, rows, 53) == ([40, 12], 1)
        assert tables.fit(headers, rows, 30) == ([17, 12], 1)
        assert tables.fit(headers, rows, 20) is None
        assert tables.fit(("WHAT", "FOUND"), [["kvm", "x" * 90]], 60) == ([4, 54], 2)


class TestColour:
    @pytest.mark.parametrize(
        ("variables", "terminal", "pipe"),
        [
            ({}, True, False),
            ({"TERM": "dumb"}, False, False),
            ({"TERM": ""}, False, False),
            ({"NO_COLOR": "1"}, False, False),
            ({"NO_COLOR": "0"}, False, False),
            ({"FORCE_COLOR": "1"}, True, True),
            ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
            ({"FORCE_COLOR": "0"}, False, False),
            ({"CLICOLOR_FORCE": "1"}, True, True),
            ({"CLICOLOR_FORCE": "0"}, True, False),
            ({"CLICOLOR": "0"}, False, False),
            ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
        ],
        ids=str,
    )
    def test_colour_is_where_it_is_wanted(
        self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], terminal: bool, pipe: bool
    ) -> None:
        for name, value in (PLAIN | variables).items():
            monkeypatch.setenv(name, value)
        assert output.wants_colour(is_terminal=True) is terminal
        assert output.wants_colour(is_terminal=False) is pipe

    def test_a_terminal_gets_colours_and_no_other_control(self, ramet: Shell, stored: Home) -> None:
        shown = on_terminal(ramet, "ps", "-a")
        assert COLOUR.search(shown)
        assert "\x1b" not in COLOUR.sub("", shown)

    @pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
    def test_no_colour_is_no_control_sequence_at_all(
        self, monkeypatch: pytest.MonkeyPatch, ramet: Shell, stored: Home, variable: str, value: str
    ) -> None:
        monkeypatch.setitem(PLAIN, variable, value)
        assert "\x1b" not in on_terminal(ramet, "ps", "-a")

    def test_forced_colours_reach_a_pipe(self, ramet: Shell, stored: Home) -> None:
        ramet.environment |= PLAIN
        plain = ramet("ps", "-a").stdout.decode()
        ramet.environment |= {"FORCE_COLOR": "1"}
        coloured = ramet("ps", "-a").stdout.decode()
        assert COLOUR.search(coloured)
        assert [line.split() for line in COLOUR.sub("", coloured).splitlines()] == [
            line.split() for line in plain.splitlines()
        ]
        assert "\x1b" not in ramet("ps", "-a", "--json").stdout.decode()


class Terminal:
    """A terminal behind standard error, as the code under test sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.controller, self._terminal = pty.openpty()
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 60, 0, 0))
        self._saved = os.dup(2)
        os.dup2(self._terminal, 2)
        monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(2), "w", encoding="utf-8"))
        monkeypatch.setattr("ramet.cli.output._status_line", "")  # what is drawn here goes with this terminal
        for name, value in PLAIN.items():
            monkeypatch.setenv(name, value)

    def close(self) -> str:
        """Give standard error back; return what was written."""
        sys.stderr.close()
        os.dup2(self._saved, 2)
        os.close(self._saved)
        os.close(self._terminal)
        shown = b"".join(read_terminal(self.controller)).decode()
        os.close(self.controller)
        return shown


def screen(shown: str) -> str:
    """What stands on the line in the end."""
    return shown.rpartition("\r\x1b[K")[2]


class TestProgress:
    def test_words(self) -> None:
        mib = 1 << 20
        assert describe(None, 3.2, 3.2) == "3 s"
        assert describe(Progress("compacting", 0, 0, "bytes"), 3.2, 1) == "compacting, 3 s"
        assert describe(Progress("", 0, 100 * mib, "bytes"), 5, 5) == "0 %, 0 B of 100.0 MiB"
        assert (
            describe(Progress("reading mem", 25 * mib, 100 * mib, "bytes"), 9, 2)
            == "reading mem, 25 %, 6 s left, 25.0 MiB of 100.0 MiB"
        )
        assert (
            describe(Progress("pulling x", 25 * mib, 100 * mib, "bytes"), 9, 2, speed=25.0 * mib)
            == "pulling x, 25 %, 3 s left, 25.0 MiB of 100.0 MiB, 25.0 MiB/s"
        )
        assert (
            describe(Progress("", 25 * mib, 100 * mib, "bytes"), 9, 2, speed=0.0)
            == "25 %, 6 s left, 25.0 MiB of 100.0 MiB, 0 B/s"
        )
        assert describe(Progress("", 30, 100, "forks"), 9, 3) == "30 of 100 forks, 7 s left"
        assert describe(Progress("", 30, 100, "forks"), 0.5, 0.5) == "30 of 100 forks"
        assert describe(Progress("", 100, 100, "forks"), 9, 3) == "100 of 100 forks"
        assert describe(Progress("", 120, 100, "forks"), 9, 3) == "100 of 100 forks"
        assert describe(Progress("", 60, 100, "forks"), 9, 2, first=50) == "60 of 100 forks, 8 s left"
        assert [duration(s) for s in (0, 59.6, 200, 7500)] == ["0 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]

    def test_the_speed_is_that_of_the_last_seconds(self) -> None:
        line = _Line.__new__(_Line)
        line._recent, line._stage_began, line._recent_stage = deque(), 0.0, 0.0
        shown = []
        done = 0
        for tenths in range(200):
            done += 10 if tenths < 100 else 30
            line._progress = Progress("", done, 100_000, "bytes")
            shown.append(line._speed(tenths / 10))
        assert shown[:10] == [None] * 10
        assert round(shown[99] or 0) == 100
        assert round(shown[130] or 0) in range(150, 250)  # on its way
        assert round(shown[199] or 0) == 300
        line._stage_began = 20.0
        assert line._speed(20.0) is None

    def test_reports_reach_threads_and_tasks_and_nobody_else(self) -> None:
        heard: list[Progress] = []

        async def work() -> None:
            await asyncio.gather(
                asyncio.to_thread(report, "thread", 1, 2), asyncio.to_thread(report, "other")
            )

        report("nobody")
        with received_by(heard.append):
            asyncio.run(work())
            threading.Thread(target=report, args=("stranger",)).start()
        report("nobody")
        assert sorted(progress.stage for progress in heard) == ["other", "thread"]

    def show(
        self,
        monkeypatch: pytest.MonkeyPatch,
        seconds: float = 0.8,
        *,
        what: str = "exporting " + "x" * 80,
        **options: bool,
    ) -> str:
        terminal = Terminal(monkeypatch)

        async def work() -> None:
            with working(what, **options):
                report("", 1 << 20, 1 << 22)
                await asyncio.sleep(seconds)
                output.warn("something else")
                await asyncio.sleep(0.3)

        try:
            asyncio.run(work())
        finally:
            shown = terminal.close()
        return shown

    def test_a_line_is_drawn_and_goes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown = self.show(monkeypatch)
        assert "25 %" in shown
        assert screen(shown) == ""
        drawn = [part for part in re.split(r"\r\x1b\[K|\r\n", shown) if "25 %" in part]
        assert len(drawn) >= 3
        assert all(widths.width_of(line) <= 59 for line in drawn)
        assert "\r\x1b[Ksomething else\r\n" in shown, "a message has a line of its own"

    @pytest.mark.parametrize("what", ["x\udcff" * 40, "x\x1b[2J\n" * 40, "\u4e16\u0301" * 40])
    def test_no_name_makes_the_line_wrap(self, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
        monkeypatch.setitem(PLAIN, "COLUMNS", "200")  # wider than the terminal
        shown = self.show(monkeypatch, what=what)
        drawn = [part for part in re.split(r"\r\x1b\[K|\r\n", shown) if "25 %" in part]
        assert drawn
        assert all(widths.width_of(line) <= 59 and "\x1b" not in line for line in drawn)

    def test_none_in_the_background(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The terminal is the shell's then, and `stty tostop` would stop a process that writes to it."""
        monkeypatch.setattr(os, "tcgetpgrp", lambda _descriptor: os.getpgrp() + 1)
        assert self.show(monkeypatch) == "something else\r\n"

    def test_quick_work_draws_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.show(monkeypatch, 0.02).replace("something else", "").strip() in ("", "\r\n")

    def test_none_with_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.show(monkeypatch, quiet=True) == "something else\r\n"

    def test_none_on_a_dumb_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PLAIN, "TERM", "dumb")
        assert self.show(monkeypatch) == "something else\r\n"

    def test_none_in_a_pipe(self, capfd: pytest.CaptureFixture[str]) -> None:
        async def work() -> None:
            with working("exporting"):
                await asyncio.sleep(0.6)

        asyncio.run(work())
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_erases_the_line(self, number: signal.Signals) -> None:
        code = (
            "import sys, anyio\n"
            "from ramet.cli import calling, output, progress\n"
            "output.take_over()\n"
            "async def body():\n"
            "    with progress.working('exporting'):\n"
            "        await anyio.sleep(30)\n"
            "try:\n"
            "    calling.call(body, json=False)\n"
            "except BaseException as error:\n"
            "    sys.exit(getattr(error, 'exit_code', repr(error)))\n"
        )
        controller, terminal = pty.openpty()
        process = subprocess.Popen([sys.executable, "-c", code], stderr=terminal, env={**os.environ, **PLAIN})
        os.close(terminal)
        shown, sent = b"", False
        for piece in read_terminal(controller):
            shown += piece
            if b"exporting" in shown and not sent:
                process.send_signal(number)
                sent = True
        os.close(controller)
        assert process.wait(timeout=LIMIT_S) == 128 + number
        assert screen(shown.decode()) == ""

    def test_a_terminal_that_is_stopped_holds_nobody_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-S: a guest may be paused at that moment, and must not wait for a reader."""
        terminal = Terminal(monkeypatch)

        async def work() -> float:
            began = time.monotonic()
            with working("exporting"):
                await asyncio.sleep(0.6)
                termios.tcflow(terminal.controller, termios.TCOOFF)
                termios.tcflow(2, termios.TCOOFF)
                await asyncio.sleep(0.6)
            return time.monotonic() - began

        try:
            assert asyncio.run(work()) < 5
        finally:
            termios.tcflow(2, termios.TCOON)
            terminal.close()


def test_an_export_shows_what_is_left(tmp_path: Path) -> None:
    """The reports of the archive itself, out of a worker thread."""
    from ramet.memory.integrity import digest
    from ramet.system.archive import write_archive

    part = tmp_path / "mem"
    part.write_bytes(os.urandom(5 << 20))
    heard: list[Progress] = []
    with received_by(heard.append), part.open("rb") as source, (tmp_path / "out").open("wb") as out:
        write_archive(out.fileno(), b"{}", [("mem", source.fileno())], to="out")
        assert [(progress.done >> 20, progress.total >> 20) for progress in heard] == [
            (mib, 5) for mib in range(1, 6)
        ]
        heard.clear()
        digest(part)
        assert heard[0].stage == "reading mem"
        assert heard[-1].total == 5 << 20
        assert [progress.done for progress in heard] == sorted(progress.done for progress in heard)
