"""Examples of a page, run as a reader runs them: files that it names, commands, and the output that it shows.

- A block `python` whose first line is `# NAME.py` is saved as that file.
- In a block `console`, a line that begins with `$ ` is a command, `> ` continues it, and the lines after it
  are its output, standard error included. A command that ends with ` &` runs until the page is done.
- Numbers, ids and the width of columns may differ; a line `...` stands for any lines.
- `<!-- not run -->` before a block leaves it out.

`python -m tests.support.transcripts PAGE` runs a page in a new home and prints today's output.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_BLOCK: Final = re.compile(r"(<!-- not run -->\n)?^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SECONDS_A_COMMAND: Final = 150


class Command(NamedTuple):
    """A command of a page with the output that the page shows."""

    words: str
    shown: str


class Page:
    """The examples of a Markdown page, and a directory to run them in."""

    def __init__(self, text: str, directory: Path, home: Path) -> None:
        self._directory = directory
        self._environment = {
            **os.environ,
            "RAMET_HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "100",
        }
        self._background: list[subprocess.Popen[bytes]] = []
        self.commands: list[Command] = []
        for left_out, kind, body in _BLOCK.findall(text):
            if left_out:
                continue
            if kind == "console":
                self.commands += commands(body)
            elif name := re.match(r"# (\w+\.py)\n", body):
                (directory / name[1]).write_text(body)

    def run(self, command: Command) -> str:
        """The output of a command, standard error included."""
        if command.words.endswith(" &"):
            # A group of its own: what it starts ends with it.
            started = subprocess.Popen(
                ["bash", "-c", f"exec {command.words.removesuffix(' &')}"],
                env=self._environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._background.append(started)
            return ""
        done = subprocess.run(
            ["bash", "-c", command.words],
            env=self._environment,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS_A_COMMAND,
            check=False,
        )
        return done.stdout

    def close(self) -> None:
        """End what runs in the background."""
        for started in self._background:
            os.killpg(started.pid, signal.SIGTERM)
            started.wait(30)


def commands(body: str) -> Iterator[Command]:
    """The commands of a block `console`."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        words, *rest = part.splitlines()
        while rest and rest[0].startswith("> "):
            words += "\n" + rest.pop(0)[2:]
        yield Command(words, "\n".join(rest))


def _pattern(shown: str) -> str:
    parts = [
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + "\n" for line in _plain(shown).splitlines()
    ]
    return "".join(parts)


def _plain(text: str) -> str:
    """Without what differs from run to run: numbers, ids, invented names, the width of columns."""
    text = re.sub(r"qemu/(tcg|kvm)", "qemu", text)
    text = re.sub(r"\b[0-9a-f]{8,64}\b", "N", text)
    text = re.sub(r"\d+(?:[.,]\d+)*", "N", text)
    return "".join(f"{' '.join(line.split())}\n" for line in text.splitlines() if line.strip())


def fits(shown: str, printed: str) -> bool:
    """Compare what a page shows with what was printed."""
    return re.fullmatch(_pattern(shown), _plain(printed)) is not None


def main(page: Path) -> None:
    """Print the page's commands with today's output."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name, "work")
        directory.mkdir()
        run = Page(page.read_text(), directory, Path(name, "home"))
        try:
            for command in run.commands:
                print("$ " + command.words.replace("\n", "\n> "))
                printed = run.run(command)
                print(printed, end="", flush=True)
                if command.shown and not fits(command.shown, printed):
                    print("^^^ differs from the page", flush=True)
        finally:
            run.close()
            subprocess.run(
                ["bash", "-c", "ramet ps -aq | xargs -r ramet rm -f"], env=run._environment, check=False
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
