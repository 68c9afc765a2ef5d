"""A fault around the real thing: one VMM of a call of `fork` is killed before its guest can answer."""

from __future__ import annotations

import pytest

from ramet.drivers.qemu_vmm import QemuVmm
from ramet.host import processes


def lose_the_second_vmm(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From here on, of those whose guests go on: the pids, in what is returned. Emptied, it counts anew."""
    resumed: list[int] = []
    original = QemuVmm.load_and_resume

    async def load_then_lose_one(self: QemuVmm, name: str) -> None:
        await original(self, name)
        resumed.append(self.process.pid)
        if len(resumed) == 2:
            await processes.kill(self.process)

    monkeypatch.setattr(QemuVmm, "load_and_resume", load_then_lose_one)
    return resumed
