"""A kernel that the user names is tried on a KVM that doesn't run a stock one, once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import ramet
from ramet.drivers.firecracker.driver import Firecracker
from ramet.engine import drivers
from ramet.engine.drivers import Fit, accelerator_of
from ramet.engine.lifecycle import boot
from ramet.images.kernel import find_kernel
from ramet.system.kvm import KvmVerdict
from ramet.system.kvm_kernels import Trial, trials
from ramet.system.kvm_kind import kvm_kind
from tests.conftest import living_in

pytestmark = pytest.mark.anyio

VERDICT = KvmVerdict("bare_metal_only", "said so", 0, "kvm_pvm")


@pytest.fixture
async def firecracker() -> Firecracker:
    driver = Firecracker()
    try:
        await driver.version()
    except ramet.UnavailableError as error:
        pytest.skip(error.message)
    return driver


async def test_the_verdict_is_about_the_kernel(firecracker: Firecracker) -> None:
    for fit in (Fit.RUNS, Fit.UNTRIED):
        assert await accelerator_of(firecracker, "linux", "auto", VERDICT, fit=fit) == "kvm"
    with pytest.raises(ramet.UnavailableError, match="doesn't run Linux guests here: said so"):
        await accelerator_of(firecracker, "linux", "auto", VERDICT)
    trial = Trial(
        driver="firecracker", kernel_version="6.1", kernel_digest="", runs=False, detail="it died", key=""
    )
    with pytest.raises(ramet.UnavailableError, match=r"\(kvm_pvm\) doesn't run the kernel 6.1: it died"):
        await accelerator_of(firecracker, "linux", "auto", VERDICT, fit=Fit.FAILS, trial=trial)


@pytest.mark.vm
@pytest.mark.deep
@pytest.mark.skipif(kvm_kind() != "kvm_pvm", reason="this machine's KVM isn't PVM")
async def test_a_stock_kernel_is_tried_once_and_remembered(
    firecracker: Firecracker, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = find_kernel().vmlinuz
    monkeypatch.setenv("RAMET_FIRECRACKER", firecracker.program())
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "cache"))
    async with ramet.Host(home) as host:
        # Nobody has named it, or asked for KVM: nothing is tried.
        monkeypatch.setenv("RAMET_KERNEL", str(kernel))
        vm = await host.run(memory="128M")
        assert (await vm.inspect()).accelerator == "tcg"
        assert trials(tmp_path / "cache") == []
        started = time.monotonic()
        with pytest.raises(ramet.UnavailableError, match=r"doesn't run the kernel .* when it was tried"):
            await host.run(driver="firecracker", name="tried")
        [trial] = trials(tmp_path / "cache")
        assert (trial.driver, trial.runs) == ("firecracker", False)
        assert time.monotonic() - started >= boot.TRIAL_LIMIT_S or "ended" in trial.detail
        monkeypatch.setattr(boot, "launch", None)  # nothing boots any more
        with pytest.raises(ramet.UnavailableError, match=r"doesn't run the kernel .* when it was tried"):
            await host.run(driver="firecracker", name="tried")
        assert [instance.name for instance in await host.list(everything=True)] == [(await vm.info()).name]
        assert len(living_in(home)) == 1


@pytest.mark.vm
async def test_a_trial_that_cant_be_kept_is_not_repeated_in_the_same_call(
    firecracker: Firecracker, host: ramet.Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    async def verdict(_: Path) -> KvmVerdict:
        return VERDICT

    async def boots(*arguments: object, **_: object) -> ramet.VM:
        calls.append(arguments)
        raise ramet.VmmError("name: its VMM ended")

    monkeypatch.setattr(drivers, "kvm_verdict", verdict)
    monkeypatch.setattr(drivers, "find_trial", lambda *_: None)
    monkeypatch.setattr(host._context, "cache", tmp_path)
    monkeypatch.setattr(boot, "launch", boots)
    monkeypatch.setenv("RAMET_KERNEL", str(find_kernel().vmlinuz))
    with pytest.raises(ramet.UnavailableError, match="when it was tried, its VMM ended"):
        await host.run(driver="firecracker")
    assert len(calls) == 1
    assert await host.list(everything=True) == []
