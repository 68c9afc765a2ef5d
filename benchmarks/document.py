"""The one document that a run leaves: where and how it was measured, and every value of every figure."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.run import Outcome
from ramet import config
from ramet.drivers.firecracker.driver import Firecracker
from ramet.drivers.qemu.driver import Qemu
from ramet.errors import RametError
from ramet.system.kvm import kvm_verdict
from ramet.version import __version__

ROOT: Final = Path(__file__).resolve().parent.parent
_LIMIT_S: Final = 20


class Machine(msgspec.Struct, kw_only=True):
    """Where it was measured."""

    processor: str
    processors: int
    memory_bytes: int
    kernel: str
    filesystem: str
    """Of the benchmarks' homes."""
    kvm: str
    """What runs on it."""


class Versions(msgspec.Struct, kw_only=True):
    """Of what."""

    ramet: str
    commit: str
    """With `-dirty` where the checkout had changes."""
    python: str
    qemu: str
    firecracker: str


class Document(msgspec.Struct, kw_only=True):
    """A run."""

    machine: Machine
    versions: Versions
    date: str
    """UTC, when it began."""
    command: str
    quick: bool
    load_before: float
    """Processes that wanted a CPU in the minute before it began (proc(5), loadavg)."""
    seconds: float = 0.0
    outcomes: list[Outcome]

    def outcome(self, name: str) -> Outcome | None:
        return next((outcome for outcome in self.outcomes if outcome.name == name), None)


def read(file: Path) -> Document:
    """Raises `msgspec.ValidationError` for one of another shape."""
    return msgspec.json.decode(file.read_bytes(), type=Document)


def write(file: Path, document: Document) -> None:
    """A figure a line, so that a new run is a readable difference."""
    document_json = msgspec.to_builtins(document)
    outcomes = document_json.pop("outcomes")
    head = msgspec.json.format(msgspec.json.encode(document_json), indent=1).decode()
    parts = []
    for outcome in outcomes:
        lists = {name: outcome.pop(name) for name in ("figures", "ratios", "skipped")}
        lines = [_line(outcome)[:-1]]
        for name, entries in lists.items():
            lines.append(f',\n  "{name}": [' + ",".join(f"\n   {_line(entry)}" for entry in entries) + "]")
        parts.append("".join(lines) + "}")
    file.write_text(
        head.rstrip().removesuffix("}").rstrip() + ',\n "outcomes": [\n' + ",\n".join(parts) + "]}\n"
    )


def _line(value: object) -> str:
    return msgspec.json.encode(value).decode()


async def begin(words: list[str], *, quick: bool) -> Document:
    """One without outcomes yet."""
    verdict = await kvm_verdict(config.cache_directory())
    return Document(
        machine=Machine(
            processor=_processor(),
            processors=os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            kernel=platform.release().partition("-")[0],
            filesystem=_filesystem(config.cache_directory()),
            kvm=verdict.detail,
        ),
        versions=Versions(
            ramet=__version__,
            commit=_commit(),
            python=platform.python_version(),
            qemu=await _version(Qemu()),
            firecracker=await _version(Firecracker()),
        ),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "benchmarks", *words]),
        quick=quick,
        load_before=os.getloadavg()[0],
        outcomes=[],
    )


async def _version(driver: Qemu | Firecracker) -> str:
    try:
        return str(await driver.version())
    except RametError:
        return "none"


def _commit() -> str:
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match=-"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    return done.stdout.strip() or "not known"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(directory: Path) -> str:
    """Its type, by its device (proc(5), mountinfo)."""
    directory.mkdir(parents=True, exist_ok=True)
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[2] == wanted:
            return line.partition(" - ")[2].split()[0]
    return "not known"
