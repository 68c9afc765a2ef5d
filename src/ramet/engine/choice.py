"""Which driver and which accelerator run a guest: what the user asked for, and what this machine can."""

from __future__ import annotations

from collections.abc import Iterable

from ramet import config
from ramet.drivers.api import Ability, Driver
from ramet.engine.context import Context
from ramet.errors import UnavailableError, UsageError
from ramet.host.kvm import KvmVerdict, kvm_verdict
from ramet.model.record import Guest

_WHAT = {"linux": "Linux guests", "bare-metal": "bare-metal guests"}
ACCELERATORS = ("auto", "kvm", "tcg")


async def choose(context: Context, driver_name: str, guest: Guest) -> tuple[Driver, str]:
    """The driver, and `kvm` or `tcg`. `auto` is what `RAMET_DRIVER` says; where that says nothing, the first
    that can: Firecracker where KVM really runs such a guest, else QEMU.

    Raises `UsageError` for a name that isn't known, `UnavailableError` with the reason of each driver that
    was asked for when this machine can't.
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
            return driver, await accelerator_of(driver, guest, wish, verdict)
        except UnavailableError as error:
            refusals.append(error)
    if len(refusals) == 1:
        raise refusals[0]
    raise UnavailableError(
        f"no driver can run {_WHAT[guest]} here: {'; '.join(one.message for one in refusals)}",
        hint=next((one.hint for one in reversed(refusals) if one.hint), None),
    )


def _candidates(context: Context, driver_name: str) -> Iterable[Driver]:
    return context.drivers.values() if driver_name == "auto" else [context.driver(driver_name)]


async def accelerator_of(driver: Driver, guest: Guest, wish: str, verdict: KvmVerdict) -> str:
    """`kvm` or `tcg`: what `driver` would run such a guest with here.

    Raises `UnavailableError` with the reason when it can't; what `Driver.version` raises.
    """
    await driver.version()
    if guest == "bare-metal" and Ability.BOOTS_BARE_METAL not in driver.abilities:
        raise UnavailableError(
            f"{driver.name} boots no bare-metal guests", hint="leave --driver and RAMET_DRIVER out"
        )
    emulates = Ability.EMULATES in driver.abilities
    if wish != "tcg" and kvm_runs(verdict, guest):
        return "kvm"
    if wish == "tcg" and not emulates:
        raise UnavailableError(f"{driver.name} emulates nothing: it needs KVM", hint="leave --accel out")
    if wish == "kvm" or not emulates:
        hint = "leave --accel out, or use --accel tcg" if emulates else "`ramet doctor` says more of KVM"
        needs = "" if wish == "kvm" else f"{driver.name} needs KVM, and "
        raise UnavailableError(f"{needs}KVM doesn't run {_WHAT[guest]} here: {verdict.detail}", hint=hint)
    return "tcg"


def kvm_runs(verdict: KvmVerdict, guest: Guest) -> bool:
    """Whether this machine's KVM runs such a guest."""
    return verdict.status == "runs_linux" or (guest == "bare-metal" and verdict.status == "bare_metal_only")
