"""A fault around the real thing: one VMM of a call of `fork` is killed before its guest can answer."""

from __future__ import annotations

import pytest

from ramet.drivers.qemu_vmm import QemuVmm
from ramet.host import processes


def lose_the_second_vmm(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From here on, of those that are resumed: their pids, in what is returned. Emptied, it counts anew."""
    resumed: list[int] = []
    original = QemuVmm.resume

    async def resume_then_lose_one(self: QemuVmm) -> None:
        await original(self)
        resumed.append(self.process.pid)
        if len(resumed) == 2:
            await processes.kill(self.process)

    monkeypatch.setattr(QemuVmm, "resume", resume_then_lose_one)
    return resumed
