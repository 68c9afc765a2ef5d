"""ramet: boot a microVM once, fork it into hundreds of running copies that share one copy of its memory.

    async with ramet.Host() as host:
        vm = await host.run("builtin", name="warm")
        base = await vm.template()
        async with base.fork(8) as forks:
            results = await forks.exec("hostname")

`ramet.sync` is the same surface for plain code.
"""

from ramet.engine.forks import ForkCall, Forks
from ramet.engine.host import Host
from ramet.engine.results import ExecResult, ForkError
from ramet.engine.vm import VM
from ramet.errors import (
    DamagedError,
    ExecError,
    ExecNotExecutableError,
    ExecNotFoundError,
    ExecTimeoutError,
    GuestError,
    GuestTimeoutError,
    NameTakenError,
    NotFoundError,
    NotSharedError,
    PartlyFailedError,
    PortsBusyError,
    ProtocolError,
    RametError,
    StoreError,
    UnavailableError,
    UsageError,
    VmmError,
    VmmTimeoutError,
    WrongStateError,
)
from ramet.model.lifecycle import State
from ramet.model.shapes import ForkReport, Inspection, Instance, LineageNode, Receipt, Usage
from ramet.version import __version__

__all__ = [
    "VM",
    "DamagedError",
    "ExecError",
    "ExecNotExecutableError",
    "ExecNotFoundError",
    "ExecResult",
    "ExecTimeoutError",
    "ForkCall",
    "ForkError",
    "ForkReport",
    "Forks",
    "GuestError",
    "GuestTimeoutError",
    "Host",
    "Inspection",
    "Instance",
    "LineageNode",
    "NameTakenError",
    "NotFoundError",
    "NotSharedError",
    "PartlyFailedError",
    "PortsBusyError",
    "ProtocolError",
    "RametError",
    "Receipt",
    "State",
    "StoreError",
    "UnavailableError",
    "Usage",
    "UsageError",
    "VmmError",
    "VmmTimeoutError",
    "WrongStateError",
    "__version__",
]
