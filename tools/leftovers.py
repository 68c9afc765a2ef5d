"""What a test run that was ended in the middle has left: processes, mounts, homes; and away with them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

TAG = "RAMET_DEEP_RUN"
"""In the environment of a run, and so of all that it starts: VMMs too, which are in sessions of their own."""
_LIMIT_S = 20
_HOMES = "tests-*"


class Leftovers:
    """Of one run, known by its tag and by the homes in `cache` that weren't there when this was made."""

    def __init__(self, cache: Path, tag: str) -> None:
        self._cache = cache.resolve()
        self._mark = f"{TAG}={tag}".encode()
        self._before = set(self._homes())

    def remove(self) -> list[str]:
        """Kill, unmount and delete; says what there was. What can't be removed is said and stays."""
        said = []
        end = time.monotonic() + _LIMIT_S
        killed: set[int] = set()
        while (left := set(self._processes())) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= left
            time.sleep(0.1)
        if killed:
            said.append(f"killed {len(killed)} processes")
        if left:
            said.append(f"still there: processes {sorted(left)}")
        for point in sorted(self._mounts(), reverse=True):
            done = subprocess.run(["umount", "--lazy", point], capture_output=True, text=True, check=False)
            said.append(f"unmounted {point}" if done.returncode == 0 else done.stderr.strip())
        for home in self._new_homes():
            # Never through a mount that has stayed.
            if not any(Path(point).is_relative_to(home) for point in self._mounts()):
                shutil.rmtree(home, ignore_errors=True)
                said.append(f"removed {home}" if not home.exists() else f"couldn't remove {home}")
        return said

    def _homes(self) -> Iterator[Path]:
        return self._cache.glob(_HOMES)

    def _new_homes(self) -> list[Path]:
        return sorted(set(self._homes()) - self._before)

    def _processes(self) -> Iterator[int]:
        homes = self._new_homes()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                # A zombie has neither.
                marked = self._mark in (entry / "environ").read_bytes().split(b"\0")
                if marked or any((entry / "cwd").readlink().is_relative_to(home) for home in homes):
                    yield int(entry.name)

    def _mounts(self) -> list[str]:
        homes = self._new_homes()
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        escaped = [line.split()[4] for line in lines]
        points = [os.fsdecode(point.encode().decode("unicode_escape").encode("latin-1")) for point in escaped]
        return [point for point in points if any(Path(point).is_relative_to(home) for home in homes)]
