"""Cloud Hypervisor's needs of KVM. KVM is asked, because a KVM that runs guests may lack some of them.

Cloud Hypervisor starts no guest without certain capabilities. Each save asks for the nested state of a
virtual CPU. A KVM may refuse this request, regardless of its capabilities: a paravirtual KVM answered EINVAL
(seen with 53.0), so its guests run, and none of them can be captured. So ramet makes the request, of a
virtual CPU without a guest.

Source: Cloud Hypervisor's `hypervisor/src/kvm/x86_64/mod.rs` (`check_required_kvm_extensions`) and
`hypervisor/src/kvm/mod.rs` (`state` of a vCPU), at v53.0; Documentation/virt/kvm/api.rst,
KVM_CHECK_EXTENSION (4.4) and KVM_GET_NESTED_STATE (4.114); linux/kvm.h.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import ExitStack
from typing import Final, NamedTuple

_KVM: Final = "/dev/kvm"
_CREATE_VM: Final = 0xAE01
_CHECK_EXTENSION: Final = 0xAE03
_CREATE_VCPU: Final = 0xAE41
_GET_NESTED_STATE: Final = 0xC080AEBE
_STATE: Final = struct.Struct("<HHI120x8192x")  # flags, format, size, both vendors' headers and data
_CAPABILITIES: Final = {
    "KVM_CAP_IRQCHIP": 0,
    "KVM_CAP_USER_MEMORY": 3,
    "KVM_CAP_SET_TSS_ADDR": 4,
    "KVM_CAP_EXT_CPUID": 7,
    "KVM_CAP_MP_STATE": 14,
    "KVM_CAP_USER_NMI": 22,
    "KVM_CAP_IRQ_ROUTING": 25,
    "KVM_CAP_IRQFD": 32,
    "KVM_CAP_IOEVENTFD": 36,
    "KVM_CAP_SET_IDENTITY_MAP_ADDR": 37,
    "KVM_CAP_ADJUST_CLOCK": 39,
    "KVM_CAP_VCPU_EVENTS": 41,
    "KVM_CAP_XSAVE": 55,
    "KVM_CAP_GET_TSC_KHZ": 61,
    "KVM_CAP_TSC_DEADLINE_TIMER": 72,
    "KVM_CAP_SPLIT_IRQCHIP": 121,
    "KVM_CAP_IMMEDIATE_EXIT": 136,
}


class Lacks(NamedTuple):
    """The lacks of this machine's KVM. Empty where KVM can't be asked: `kvm_verdict` says why then."""

    capabilities: tuple[str, ...] = ()
    """Without one of these no guest runs."""
    nested_state: str | None = None
    """The reason why KVM gives no virtual CPU's nested state: no guest can be captured."""

    @property
    def words(self) -> str | None:
        """Say what is lacking and what that means; None if nothing is."""
        if self.capabilities:
            return f"KVM lacks {', '.join(self.capabilities)}: no guest runs here"
        if self.nested_state is not None:
            return (
                f"KVM refuses KVM_GET_NESTED_STATE ({self.nested_state}): its guests run here, and can't be"
                " captured"
            )
        return None


def lacks() -> Lacks:
    """Return what this machine's KVM lacks for Cloud Hypervisor. Takes 1 ms, and leaves nothing open."""
    state = bytearray(_STATE.pack(0, 0, _STATE.size))
    with ExitStack() as closing:
        try:
            kvm = _closed_by(closing, os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
            missing = tuple(name for name, number in _CAPABILITIES.items() if not _has(kvm, number))
            if missing:
                return Lacks(capabilities=missing)
            vm = _closed_by(closing, fcntl.ioctl(kvm, _CREATE_VM, 0))
            cpu = _closed_by(closing, fcntl.ioctl(vm, _CREATE_VCPU, 0))
        except OSError:
            return Lacks()
        try:
            fcntl.ioctl(cpu, _GET_NESTED_STATE, state)
        except OSError as error:
            return Lacks(nested_state=error.strerror or str(error))
    return Lacks()


def _has(kvm: int, capability: int) -> bool:
    return bool(fcntl.ioctl(kvm, _CHECK_EXTENSION, capability))


def _closed_by(closing: ExitStack, descriptor: int) -> int:
    closing.callback(os.close, descriptor)
    return descriptor
