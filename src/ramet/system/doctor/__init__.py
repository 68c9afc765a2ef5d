"""The abilities of this machine, found out by trying.

Each function returns findings: the result and, if something is missing, the remedy. No trial leaves anything
behind, and nothing raises because the machine can't do it. The findings of VMMs, images and the memory plane
are added by `ramet.engine.doctor`, which knows those rooms.
"""

from ramet.system.doctor.finding import Finding
from ramet.system.doctor.home import home_findings
from ramet.system.doctor.kvm import kernels_finding, kvm_finding
from ramet.system.doctor.limits import limit_findings
from ramet.system.doctor.ptrace import ptrace_finding

__all__ = ["Finding", "home_findings", "kernels_finding", "kvm_finding", "limit_findings", "ptrace_finding"]
