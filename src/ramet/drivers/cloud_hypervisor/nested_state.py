"""KVM's answer to a request that each save of Cloud Hypervisor makes: the nested state of a virtual CPU.

A KVM that refuses runs guests, and none of them can be captured: seen on a paravirtual KVM, which answers
EINVAL. Its list of capabilities doesn't tell, so the request is made, of a virtual CPU without a guest.

Source: Documentation/virt/kvm/api.rst, KVM_GET_NESTED_STATE (4.114); linux/kvm.h; Cloud Hypervisor's
`hypervisor/src/kvm/mod.rs` (`state` of a vCPU), at v53.0.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import ExitStack
from typing import Final

_KVM: Final = "/dev/kvm"
_CREATE_VM: Final = 0xAE01
_CREATE_VCPU: Final = 0xAE41
_GET_NESTED_STATE: Final = 0xC080AEBE
_STATE: Final = struct.Struct("<HHI120x8192x")  # flags, format, size, both vendors' headers and data


def why_refused() -> str | None:
    """Return the reason why KVM gives no virtual CPU's nested state.

    None when it gives it, and where no virtual CPU can be made: the check of KVM itself says why then. Takes
    a millisecond.
    """
    state = bytearray(_STATE.pack(0, 0, _STATE.size))
    with ExitStack() as closing:
        try:
            kvm = _closed_by(closing, os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
            vm = _closed_by(closing, fcntl.ioctl(kvm, _CREATE_VM, 0))
            cpu = _closed_by(closing, fcntl.ioctl(vm, _CREATE_VCPU, 0))
        except OSError:
            return None
        try:
            fcntl.ioctl(cpu, _GET_NESTED_STATE, state)
        except OSError as error:
            return error.strerror or str(error)
    return None


def _closed_by(closing: ExitStack, descriptor: int) -> int:
    closing.callback(os.close, descriptor)
    return descriptor
