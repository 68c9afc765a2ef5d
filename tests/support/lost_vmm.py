"""A fault around the real thing: one VMM of a call of `fork` is killed before its guest can answer."""

from __future__ import annotations

import pytest

from ramet.drivers.firecracker.vmm import FirecrackerVmm
from ramet.drivers.qemu.vmm import QemuVmm
from ramet.system import processes


def lose_the_second_vmm(
    monkeypatch: pytest.MonkeyPatch, kind: type[QemuVmm] | type[FirecrackerVmm] = QemuVmm
) -> list[int]:
    """From here on, of those of that kind whose guests go on: the pids, in what is returned. Emptied, it
    counts anew.
    """
    resumed: list[int] = []
    original = kind.load_and_resume

    async def load_then_lose_one(self: QemuVmm | FirecrackerVmm, name: str) -> None:
        await original(self, name)  # type: ignore[arg-type]  # of the kind that is patched
        resumed.append(self.process.pid)
        if len(resumed) == 2:
            await processes.kill(self.process)

    monkeypatch.setattr(kind, "load_and_resume", load_then_lose_one)
    return resumed
