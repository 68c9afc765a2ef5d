"""ramet: boot a microVM once, fork it into hundreds of running copies that share one copy of its memory.

    async with ramet.Host() as host:
        vm = await host.run("builtin", name="warm")
        base = await vm.template()
        async with base.fork(8) as forks:
            results = await forks.exec("hostname")

`ramet.sync` is the same surface for plain code.

Names are loaded when they are first used (PEP 562): `import ramet` costs a millisecond, and the command line
pays only for what a verb needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ramet.version import __version__

if TYPE_CHECKING:
    from ramet import sync as sync
    from ramet.engine.forks import ForkCall, Forks
    from ramet.engine.host import Host
    from ramet.engine.results import ExecResult, ForkError
    from ramet.engine.snapshot import Snapshot
    from ramet.engine.vm import VM
    from ramet.errors import (
        DamagedError,
        ExecError,
        ExecNotExecutableError,
        ExecNotFoundError,
        ExecTimeoutError,
        ExecUnansweredError,
        GuestError,
        GuestTimeoutError,
        LimitReachedError,
        NameTakenError,
        NotFoundError,
        NotSharedError,
        PartlyFailedError,
        PortsBusyError,
        ProtocolError,
        RametError,
        StoreError,
        UnavailableError,
        UnseenError,
        UsageError,
        VmmError,
        VmmTimeoutError,
        WrongStateError,
    )
    from ramet.guest.process import Process
    from ramet.model.lifecycle import State
    from ramet.model.shapes import (
        Exported,
        ForkReport,
        Inspection,
        Instance,
        LineageNode,
        PartCheck,
        Receipt,
        SnapshotInfo,
        SnapshotInspection,
        Usage,
        Verification,
    )

__all__ = [
    "VM",
    "DamagedError",
    "ExecError",
    "ExecNotExecutableError",
    "ExecNotFoundError",
    "ExecResult",
    "ExecTimeoutError",
    "ExecUnansweredError",
    "Exported",
    "ForkCall",
    "ForkError",
    "ForkReport",
    "Forks",
    "GuestError",
    "GuestTimeoutError",
    "Host",
    "Inspection",
    "Instance",
    "LimitReachedError",
    "LineageNode",
    "NameTakenError",
    "NotFoundError",
    "NotSharedError",
    "PartCheck",
    "PartlyFailedError",
    "PortsBusyError",
    "Process",
    "ProtocolError",
    "RametError",
    "Receipt",
    "Snapshot",
    "SnapshotInfo",
    "SnapshotInspection",
    "State",
    "StoreError",
    "UnavailableError",
    "UnseenError",
    "Usage",
    "UsageError",
    "Verification",
    "VmmError",
    "VmmTimeoutError",
    "WrongStateError",
    "__version__",
    "sync",
]

_HOMES = {
    "ForkCall": "ramet.engine.forks",
    "Forks": "ramet.engine.forks",
    "Host": "ramet.engine.host",
    "ExecResult": "ramet.engine.results",
    "ForkError": "ramet.engine.results",
    "Snapshot": "ramet.engine.snapshot",
    "VM": "ramet.engine.vm",
    "Process": "ramet.guest.process",
    "State": "ramet.model.lifecycle",
    **dict.fromkeys(
        [
            *("Exported", "ForkReport", "Inspection", "Instance", "LineageNode", "PartCheck", "Receipt"),
            *("SnapshotInfo", "SnapshotInspection", "Usage", "Verification"),
        ],
        "ramet.model.shapes",
    ),
}
"""Where each public name is defined; every other one is an error."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "sync":
        return import_module("ramet.sync")
    value: object = getattr(import_module(_HOMES.get(name, "ramet.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
