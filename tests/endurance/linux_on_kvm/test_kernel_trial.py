"""A kernel that the check takes for one that doesn't run, and that does: it is tried, and remembered so."""

from __future__ import annotations

from pathlib import Path

import pytest

import ramet
from ramet.engine import drivers
from ramet.images.kernel import find_kernel
from ramet.system.kvm import KvmVerdict
from ramet.system.kvm_kernels import trials

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600)]


async def test_a_kernel_that_runs_is_used_from_then_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def verdict(_: Path) -> KvmVerdict:
        return KvmVerdict("bare_metal_only", "said so", 0, "kvm_pvm")

    kernel = find_kernel().vmlinuz
    monkeypatch.setattr(drivers, "kvm_verdict", verdict)
    async with ramet.Host(home) as host:
        monkeypatch.setattr(host._context, "cache", tmp_path)
        monkeypatch.setenv("RAMET_KERNEL", str(kernel))
        monkeypatch.setattr("ramet.engine.lifecycle.boot.TRIAL_LIMIT_S", 90.0)  # it is itself emulated
        vm = await host.run(driver="firecracker", memory="128M")
        assert [(trial.driver, trial.runs) for trial in trials(tmp_path)] == [("firecracker", True)]
        await vm.remove(force=True)
        # Also where nobody asks for it: what is known to run is used.
        monkeypatch.delenv("RAMET_DRIVER", raising=False)
        again = await host.run(memory="128M")
        assert (await again.inspect()).accelerator == "kvm"
        await again.remove(force=True)
