"""What is spawned is known at once: a sweep in the next moment finds it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from ramet.host import processes


def test_a_spawned_process_bears_its_mark_when_spawn_returns(tmp_path: Path) -> None:
    """Popen returns while the child is still within execve(2), where it has no environment for a moment."""
    for _ in range(100):
        process = processes.spawn(["sleep", "60"], directory=tmp_path, log=tmp_path / "vmm.log")
        try:
            assert processes.spawned_in(tmp_path) == [process]
        finally:
            os.kill(process.pid, signal.SIGKILL)
            while processes.is_alive(process):
                pass
