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

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from ramet.version import __version__

if TYPE_CHECKING:
    from ramet import sync as sync
    from ramet.api.doctor import doctor
    from ramet.api.handles import VM, Snapshot
    from ramet.api.host import Host
    from ramet.errors import (
        CannotReflinkError,
        DamagedError,
        ExecError,
        ExecNotExecutableError,
        ExecNotFoundError,
        ExecTimeoutError,
        ExecUnansweredError,
        FilesystemError,
        GuestError,
        GuestLostError,
        GuestTimeoutError,
        LimitReachedError,
        LockBusyError,
        NameTakenError,
        NotFoundError,
        NotSharedError,
        PartlyFailedError,
        PortsBusyError,
        ProtocolError,
        RametError,
        RegistryError,
        RegistryLoginError,
        StoreError,
        UnavailableError,
        UnreadableError,
        UnseenError,
        UsageError,
        VmmError,
        VmmTimeoutError,
        WrongStateError,
    )
    from ramet.guest.process import Process
    from ramet.model.boot import Boot, BootSnapshot
    from ramet.model.command import Chunk, ExitStatus, Readable, Word
    from ramet.model.doctor import Check, DoctorReport, DriverReport
    from ramet.model.exec_result import ExecResult
    from ramet.model.forks import ForkCall, ForkError, Forks, InstanceName
    from ramet.model.images import (
        ImageEntry,
        ImageFile,
        ImageInspection,
        ImageLayer,
        ImportedImage,
        PrunedImages,
        PushedImage,
    )
    from ramet.model.lifecycle import State
    from ramet.model.schema import (
        BaseReceipt,
        Compression,
        CompressionState,
        DiskReceipt,
        ErrorShape,
        Exported,
        ForkFailure,
        ForkReport,
        GuestProcess,
        GuestRoot,
        IdentityReceipt,
        Inspection,
        Instance,
        LineageNode,
        MemoryReceipt,
        PartCheck,
        PoolController,
        PoolEntry,
        PoolReport,
        Receipt,
        ResizedDisk,
        ShareMode,
        SnapshotInfo,
        SnapshotInspection,
        SnapshotPart,
        Timings,
        UnreadableRecord,
        Usage,
        Verification,
        WarmState,
    )

__all__ = [
    "VM",
    "BaseReceipt",
    "Boot",
    "BootSnapshot",
    "CannotReflinkError",
    "Check",
    "Chunk",
    "Compression",
    "CompressionState",
    "DamagedError",
    "DiskReceipt",
    "DoctorReport",
    "DriverReport",
    "ErrorShape",
    "ExecError",
    "ExecNotExecutableError",
    "ExecNotFoundError",
    "ExecResult",
    "ExecTimeoutError",
    "ExecUnansweredError",
    "ExitStatus",
    "Exported",
    "FilesystemError",
    "ForkCall",
    "ForkError",
    "ForkFailure",
    "ForkReport",
    "Forks",
    "GuestError",
    "GuestLostError",
    "GuestProcess",
    "GuestRoot",
    "GuestTimeoutError",
    "Host",
    "IdentityReceipt",
    "ImageEntry",
    "ImageFile",
    "ImageInspection",
    "ImageLayer",
    "ImportedImage",
    "Inspection",
    "Instance",
    "InstanceName",
    "LimitReachedError",
    "LineageNode",
    "LockBusyError",
    "MemoryReceipt",
    "NameTakenError",
    "NotFoundError",
    "NotSharedError",
    "PartCheck",
    "PartlyFailedError",
    "PoolController",
    "PoolEntry",
    "PoolReport",
    "PortsBusyError",
    "Process",
    "ProtocolError",
    "PrunedImages",
    "PushedImage",
    "RametError",
    "Readable",
    "Receipt",
    "RegistryError",
    "RegistryLoginError",
    "ResizedDisk",
    "ShareMode",
    "Snapshot",
    "SnapshotInfo",
    "SnapshotInspection",
    "SnapshotPart",
    "State",
    "StoreError",
    "Timings",
    "UnavailableError",
    "UnreadableError",
    "UnreadableRecord",
    "UnseenError",
    "Usage",
    "UsageError",
    "Verification",
    "VmmError",
    "VmmTimeoutError",
    "WarmState",
    "Word",
    "WrongStateError",
    "__version__",
    "doctor",
    "sync",
]

_HOMES = {
    "Host": "ramet.api.host",
    "Process": "ramet.guest.process",
    "ExecResult": "ramet.model.exec_result",
    "State": "ramet.model.lifecycle",
    "doctor": "ramet.api.doctor",
    **dict.fromkeys(
        (
            *("ImageEntry", "ImageFile", "ImageInspection", "ImageLayer", "ImportedImage"),
            *("PrunedImages", "PushedImage"),
        ),
        "ramet.model.images",
    ),
    **dict.fromkeys(("Snapshot", "VM"), "ramet.api.handles"),
    **dict.fromkeys(("Boot", "BootSnapshot"), "ramet.model.boot"),
    **dict.fromkeys(("Chunk", "ExitStatus", "Readable", "Word"), "ramet.model.command"),
    **dict.fromkeys(("Check", "DoctorReport", "DriverReport"), "ramet.model.doctor"),
    **dict.fromkeys(("ForkCall", "ForkError", "Forks", "InstanceName"), "ramet.model.forks"),
    **dict.fromkeys(
        (
            *("BaseReceipt", "Compression", "CompressionState", "DiskReceipt", "ErrorShape", "Exported"),
            *("ForkFailure", "ForkReport", "GuestProcess", "GuestRoot", "IdentityReceipt", "Inspection"),
            *("Instance", "LineageNode", "MemoryReceipt", "PartCheck", "PoolController", "PoolEntry"),
            *("PoolReport", "Receipt", "ResizedDisk", "ShareMode", "SnapshotInfo", "SnapshotInspection"),
            *("SnapshotPart", "Timings", "UnreadableRecord", "Usage", "Verification", "WarmState"),
        ),
        "ramet.model.schema",
    ),
}
"""The module of each public name; every other name is an error."""


if not TYPE_CHECKING:  # with it, a type checker would take any name for one of these

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "sync":
            return _import_module("ramet.sync")
        value: object = getattr(_import_module(_HOMES.get(name, "ramet.errors")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the public names alone: the import system also puts here each room that has been imported."""
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
