"""The kind of KVM that a machine has: the processor's own, or a paravirtual KVM.

PVM (`kvm_pvm`, for cloud machines without nested virtualization) runs a guest's ring 0 in ring 3: a kernel
that was built for it (`CONFIG_PVM_GUEST`) runs at speed, any other kernel is interpreted and fails. A guest
that was saved on one kind can't be restored on the other.

Source: the names below /sys/module; PVM's patches, `arch/x86/kvm/pvm` and `arch/x86/kernel/pvm.c`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

UNKNOWN: Final = "unknown"
PVM: Final = "kvm_pvm"
_MODULES: Final = Path("/sys/module")
_KNOWN: Final = (PVM, "kvm_intel", "kvm_amd")


def kvm_kind(modules: Path = _MODULES) -> str:
    """Return the name of the module behind `/dev/kvm`, loaded or built in; `unknown` when none is visible.

    Asked each time, and never kept: a module can be replaced by another while a process lives.
    """
    return next((name for name in _KNOWN if (modules / name).is_dir()), UNKNOWN)


def why_not_here(saved_on: str | None, here: str) -> str | None:
    """Tell why a guest that was saved on the first kind can't run on the second; None when it can.

    An unknown kind is no reason: old snapshots have none.
    """
    if saved_on is None or UNKNOWN in (saved_on, here) or (saved_on == PVM) == (here == PVM):
        return None
    return f"it was saved on {words(saved_on)}, and this machine has {words(here)}"


def words(kind: str) -> str:
    """Return people's name for it."""
    return f"PVM ({PVM})" if kind == PVM else f"the processor's own virtualization ({kind})"
