"""The drivers: which there are, and which of them runs a guest, with which accelerator.

Where KVM doesn't run a stock Linux kernel, KVM may run a kernel that was built for it. So a kernel that the
user names is tried: its first boot is the trial, and the result is kept for that kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Final, NamedTuple

from ramet import config
from ramet.drivers.cloud_hypervisor.driver import CloudHypervisor
from ramet.drivers.firecracker.driver import Firecracker
from ramet.drivers.interface import Ability, Driver
from ramet.drivers.qemu.driver import Qemu
from ramet.engine.context import Context
from ramet.errors import UnavailableError, UsageError
from ramet.images.image import Image
from ramet.images.kernel_config import is_for_pvm
from ramet.model.record import Guest
from ramet.system import threads
from ramet.system.kvm import KvmVerdict, kvm_verdict
from ramet.system.kvm_kernels import Trial, find_trial
from ramet.system.kvm_kind import PVM

_WHAT = {"linux": "Linux guests", "bare-metal": "bare-metal guests"}
ACCELERATORS = ("auto", "kvm", "tcg")


NOT_IMPLEMENTED: Final = {"vz": "needs macOS; not implemented"}
"""Hypervisors for which ramet has no driver yet, each with the reason that `ramet doctor` gives."""


def installed_drivers() -> list[Driver]:
    """Return ramet's drivers, in the order in which `auto` tries them."""
    return [Firecracker(), Qemu(), CloudHypervisor()]


def immutability(driver: Driver) -> str:
    """Say who keeps this driver's VMMs from writing the mem-file that forks share (I1), in a receipt's words.

    The driver's version has to have been asked before.
    """
    if Ability.OPENS_MEM_FILE_READ_ONLY in driver.abilities:
        return "enforced by the kernel"
    return f"not enforced by the kernel: this {driver.name} opens the mem-file for writing"


class Choice(NamedTuple):
    """A driver and an accelerator for a guest. `is_trial`: it is unknown whether KVM runs its kernel."""

    driver: Driver
    accelerator: str
    is_trial: bool = False


class Fit(Enum):
    """The knowledge of a kernel on a KVM that doesn't run a stock one."""

    RUNS = auto()
    UNTRIED = auto()
    FAILS = auto()


async def choose(context: Context, driver_name: str, image: Image, *, failed: Sequence[Trial] = ()) -> Choice:
    """Choose the driver, and `kvm` or `tcg`.

    `auto` is what `RAMET_DRIVER` says; if that is unset, the first driver that can: Firecracker if KVM really
    runs such a guest, then QEMU, then Cloud Hypervisor. `failed` are trials of this very call, which the
    cache may not have taken.

    Raises `UsageError` for an unknown name, `UnavailableError` with the reason of each driver that was asked
    for when this machine can't.
    """
    if driver_name == "auto":
        driver_name = config.driver()
    wish = context.accelerator
    if wish not in ACCELERATORS:
        raise UsageError(f"no accelerator {wish!r}", hint=f"there is {', '.join(ACCELERATORS)}")
    verdict = await kvm_verdict(context.cache)
    refusals: list[UnavailableError] = []
    for driver in _candidates(context, driver_name):
        try:
            await driver.version()
            trial, fit = None, None
            # KVM runs something, and not the check's stand-in for a stock kernel: it depends on the kernel.
            if image.guest == "linux" and verdict.status == "bare_metal_only":
                own = next((refusal for refusal in failed if refusal.driver == driver.name), None)
                trial = own or find_trial(context.cache, driver.name, image.kernel_digest)
                needs_kvm = Ability.EMULATES not in driver.abilities and driver_name != "auto"
                fit = await _fit(trial, verdict, image, is_asked_for=needs_kvm or wish == "kvm")
            accelerator = await accelerator_of(driver, image.guest, wish, verdict, fit=fit, trial=trial)
        except UnavailableError as error:
            refusals.append(error)
        else:
            return Choice(driver, accelerator, accelerator == "kvm" and fit is Fit.UNTRIED)
    if len(refusals) == 1:
        raise refusals[0]
    raise UnavailableError(
        f"no driver can run {_WHAT[image.guest]} here: {'; '.join(refusal.message for refusal in refusals)}",
        hint=next((refusal.hint for refusal in reversed(refusals) if refusal.hint), None),
    )


async def _fit(trial: Trial | None, verdict: KvmVerdict, image: Image, *, is_asked_for: bool) -> Fit | None:
    """Return what is known of a kernel's fit for this KVM; None for an unknown kernel not worth a trial.

    A trial takes a few seconds. The kernel is worth it if it is known to be built for this KVM, or named by a
    user who asks for KVM.
    """
    if trial is not None:
        return Fit.RUNS if trial.runs else Fit.FAILS
    if is_asked_for and config.kernel_image() is not None:
        return Fit.UNTRIED
    for_pvm = verdict.kind == PVM and await threads.run(_is_for_pvm, image)
    return Fit.UNTRIED if for_pvm else None


_known_for_pvm: Final[dict[str, bool]] = {}


def _is_for_pvm(image: Image) -> bool:
    """Tell whether the image's kernel was built for PVM. It is read once: that takes 20 ms."""
    known = _known_for_pvm.get(image.kernel_digest)
    if known is None:
        known = _known_for_pvm[image.kernel_digest] = is_for_pvm(image.kernel, image.kernel_version)
    return known


def _candidates(context: Context, driver_name: str) -> Iterable[Driver]:
    return context.drivers.values() if driver_name == "auto" else [context.driver(driver_name)]


async def accelerator_of(
    driver: Driver,
    guest: Guest,
    wish: str,
    verdict: KvmVerdict,
    *,
    fit: Fit | None = None,
    trial: Trial | None = None,
) -> str:
    """Return `kvm` or `tcg`, with which `driver` would run such a guest here.

    `fit` is what is known of its kernel, `trial` how. Raises `UnavailableError` with the reason when it
    can't; what `Driver.version` raises.
    """
    await driver.version()
    if guest == "bare-metal" and Ability.BOOTS_BARE_METAL not in driver.abilities:
        raise UnavailableError(
            f"{driver.name} boots no bare-metal guests", hint="leave --driver and RAMET_DRIVER out"
        )
    emulates = Ability.EMULATES in driver.abilities
    if wish != "tcg" and (kvm_runs(verdict, guest) or fit in (Fit.RUNS, Fit.UNTRIED)):
        return "kvm"
    if wish == "tcg" and not emulates:
        raise UnavailableError(f"{driver.name} emulates nothing: it needs KVM", hint="leave --accel out")
    if wish == "kvm" or not emulates:
        hint = "leave --accel out, or use --accel tcg" if emulates else "`ramet doctor` says more of KVM"
        needs = "" if wish == "kvm" else f"{driver.name} needs KVM, and "
        if trial is not None and fit is Fit.FAILS:
            raise UnavailableError(
                f"{needs}KVM ({verdict.kind}) doesn't run the kernel {trial.kernel_version}: {trial.detail}",
                hint=hint,
            )
        raise UnavailableError(f"{needs}KVM doesn't run {_WHAT[guest]} here: {verdict.detail}", hint=hint)
    return "tcg"


def kvm_runs(verdict: KvmVerdict, guest: Guest) -> bool:
    """Say whether this machine's KVM runs such a guest."""
    return verdict.status == "runs_linux" or (guest == "bare-metal" and verdict.status == "bare_metal_only")
