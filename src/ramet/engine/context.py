"""The context of every operation of the engine: a home, its records, its drivers, its agents' connections."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import anyio.abc

from ramet.calls import Calls
from ramet.drivers.interface import Driver, Vmm
from ramet.errors import NotFoundError, UsageError, VmmError, WrongStateError
from ramet.guest.agents import Agents
from ramet.model.record import Record
from ramet.paths import LIFECYCLE_LOCK, Home
from ramet.store.records import Store
from ramet.system.locks import file_lock
from ramet.system.ownership import require_removable

_LIFECYCLE_WAIT_S = 60.0


class ControlsPool(Protocol):
    """The controller of a pool of warm VMMs, in this Host."""

    def report_demand(self, source: str, count: int) -> None:
        """Note that `count` forks were made of the capture at `source` in the home."""

    def quiet(self) -> AbstractContextManager[None]:
        """Keep the pool from making VMMs during the block, and a moment longer."""


@dataclass
class Context:
    """An open home. `tasks` lives as long as the Host does."""

    home: Home
    cache: Path
    store: Store
    drivers: Mapping[str, Driver]
    agents: Agents
    tasks: anyio.abc.TaskGroup
    accelerator: str
    """The user's choice: `auto`, `kvm` or `tcg`."""
    calls: Calls
    ours: set[str] = field(default_factory=set)
    """Ids of the instances that leave with this Host."""
    locks: dict[str, int] = field(default_factory=dict)
    """The descriptor of the lock of each instance, by id, that this Host is changing."""
    ended: dict[str, Record] = field(default_factory=dict)
    """The last records of instances that ended and were removed at once, by id (`run --rm`)."""
    controller: ControlsPool | None = None

    def directory(self, record: Record) -> Path:
        """Return the instance's directory."""
        return self.home.instance(record.id)

    def driver(self, name: str) -> Driver:
        """Return the driver called `name`. Raises `UsageError`."""
        try:
            return self.drivers[name]
        except KeyError:
            raise UsageError(
                f"no driver {name!r}",
                hint=f"there is auto, {', '.join(self.drivers)} (--driver, RAMET_DRIVER)",
            ) from None

    def vmm(self, record: Record) -> Vmm:
        """Return the VMM of an instance that has one. Raises `VmmError` when its record names none."""
        if record.vmm is None:
            raise VmmError(f"{record.name} has no VMM")
        return self.driver(record.driver).attach(self.directory(record), record.vmm.process, record.machine)

    def lifecycle(self, record: Record) -> AbstractAsyncContextManager[int]:
        """Lock the instance's state, for one job at a time of any process.

        Entering raises `WrongStateError` when another job lasts for a minute, `NotFoundError` when the
        instance has been removed, `UnavailableError` when it is another user's.
        """
        if not self.directory(record).is_dir():
            raise NotFoundError(f"{record.name} has been removed", hint="`ramet ps -a` lists all instances")
        require_removable(self.directory(record), name=record.name)
        busy = WrongStateError(
            f"another ramet process has been changing {record.name} for {_LIFECYCLE_WAIT_S:.0f} s",
            hint="try again",
        )
        return file_lock(self.directory(record) / LIFECYCLE_LOCK, wait_s=_LIFECYCLE_WAIT_S, busy=busy)
