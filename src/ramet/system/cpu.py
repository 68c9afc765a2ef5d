"""The processor under ramet, as far as a guest saved on it depends on it (KVM passes it through).

Source: proc(5), /proc/cpuinfo.
"""

from __future__ import annotations

import functools
from pathlib import Path

from ramet.model.record import HostCpu

_CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def host_cpu() -> HostCpu:
    """Read this machine's first processor. Fields that the kernel doesn't tell are empty."""
    fields: dict[str, str] = {}
    for line in _CPUINFO.read_text(errors="replace").splitlines():
        if not line.strip():
            break
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    return HostCpu(
        name=fields.get("model name", ""),
        kind=" ".join(fields.get(key, "") for key in ("vendor_id", "cpu family", "model")),
        features=tuple(sorted(fields.get("flags", "").split())),
    )
