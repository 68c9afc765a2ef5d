"""The way in which a Cloud Hypervisor ended, by its events and its log.

Neither is enough: an error of KVM on a virtual CPU leaves the exit status and the events of an ordered
shutdown (seen with 53.0), and only the log names it. A guest's reset makes the VMM boot its machine again,
whose kernel's path ramet has taken away; so the VMM ends after `rebooting`.

The events aren't documented as a stable format: what can't be read counts for nothing.

Source: Cloud Hypervisor's `event_monitor/src/lib.rs` and `vmm/src/lib.rs` (`control_loop`), at v53.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from ramet.drivers.interface import Ending

LOOKED_AT_BYTES: Final = 64 * 1024
"""Bytes at the end of the events and of the log that tell the ending."""

_VCPU_FAILED: Final = b"VCPU generated error"
_GUEST_ENDED: Final = b"VM guest exit event"
_WAS_ASKED: Final = b"VM exit event"


class _Event(msgspec.Struct, frozen=True):
    source: str
    event: str


def ending_of(events: bytes, log: bytes, *, reboot_announced: bool) -> Ending:
    """Tell the ending from the last events and the last lines of the log of one VMM.

    `reboot_announced` says that the guest told on its console that it reboots.
    """
    if _VCPU_FAILED in log:
        return Ending.DIED
    names = list(_events(events))
    last = names[-1] if names else ""
    if last == "vm/rebooting":
        return Ending.REBOOTED if reboot_announced else Ending.CRASHED
    if last != "vmm/shutdown":
        return Ending.DIED
    by_guest, asked = log.rfind(_GUEST_ENDED), log.rfind(_WAS_ASKED)
    if by_guest < 0 and asked < 0:
        return Ending.DIED
    return Ending.POWERED_OFF if by_guest > asked else Ending.ASKED


def _events(content: bytes) -> Iterator[str]:
    """Yield the events of the VM and the VMM: objects with an empty line between, the first perhaps cut."""
    for text in content.split(b"\n\n"):
        try:
            event = msgspec.json.decode(text, type=_Event)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            continue
        if event.source in {"vm", "vmm"}:
            yield f"{event.source}/{event.event}"
