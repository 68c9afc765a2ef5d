"""What this machine allows, found out by trying.

Each function gives findings: what was found and, where something is missing, what to do about it. Nothing
that is tried is left behind, and nothing raises because the machine can't. The findings of VMMs, images and
the memory plane are added by who knows those rooms (`ramet.engine.doctor`).
"""

from ramet.system.doctor.finding import Finding
from ramet.system.doctor.home import home_findings
from ramet.system.doctor.kvm import kernels_finding, kvm_finding
from ramet.system.doctor.limits import limit_findings
from ramet.system.doctor.ptrace import ptrace_finding

__all__ = ["Finding", "home_findings", "kernels_finding", "kvm_finding", "limit_findings", "ptrace_finding"]
