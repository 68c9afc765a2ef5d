"""The asynchronous API as types: `ramet.Host` and its handles, on any machine.

`ramet.api` is the only implementation of these Protocols, for this machine. mypy checks it, and a test
compares the signatures. The docstrings there are the contract. A Protocol has no paths of the host
(`Host.home`, `VM.directory`), which mean nothing on another machine.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import AsyncIterator, Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Literal, Protocol, SupportsIndex, overload

from ramet.model.command import Chunk, ExitStatus, Readable, Word
from ramet.model.exec_result import DEFAULT_MAX_OUTPUT_BYTES, ExecResult
from ramet.model.images import ImageEntry, ImageInspection, ImportedImage, PrunedImages, PushedImage
from ramet.model.schema import (
    Compression,
    Exported,
    ForkReport,
    GuestRoot,
    Inspection,
    Instance,
    LineageNode,
    PoolReport,
    Receipt,
    ResizedDisk,
    SnapshotInfo,
    SnapshotInspection,
    UnreadableRecord,
    Usage,
    Verification,
)


class Process(Protocol):
    """A command that runs in the guest, inside the block of `VM.process`."""

    @property
    def pid(self) -> int: ...

    @property
    def program(self) -> str: ...

    @property
    def awaits_its_user(self) -> bool: ...

    async def write(self, data: bytes | str) -> None: ...

    async def close_stdin(self) -> None: ...

    async def signal(self, number: int | str) -> None: ...

    def output(self) -> AsyncIterator[Chunk]: ...

    async def wait(self) -> ExitStatus: ...


class Forks(Collection["VM"], Protocol):
    """The forks of a call, in order. As a context, it removes those that weren't kept or detached."""

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> VM: ...

    @overload
    def __getitem__(self, index: slice, /) -> Sequence[VM]: ...

    async def __aenter__(self) -> Forks: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def exec(
        self,
        *argv: Word,
        stdin: bytes | str | Readable | None = None,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        timeout: float | None = None,
    ) -> list[ExecResult | Exception]: ...


class ForkCall(Protocol):
    """A call of `fork` that hasn't begun: `await` or `async with` runs it, once."""

    def __await__(self) -> Generator[Any, None, Forks]: ...

    async def __aenter__(self) -> Forks: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Forkable(Protocol):
    """A handle that can be forked, and whose memory can be compressed."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    def fork(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        require_shared: bool = False,
        share_memory: bool = True,
        return_exceptions: bool = False,
        detach: bool = False,
    ) -> ForkCall: ...

    async def fork_report(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        require_shared: bool = False,
        share_memory: bool = True,
        detach: bool = False,
    ) -> ForkReport: ...

    async def compress(
        self, *, level: int | None = None, progress: Callable[[int, int], object] | None = None
    ) -> Compression: ...

    async def decompress(self, *, progress: Callable[[int, int], object] | None = None) -> Compression: ...


class VM(Forkable, Protocol):
    """An instance."""

    @property
    def receipt(self) -> Receipt: ...

    async def info(self) -> Instance: ...

    async def inspect(self) -> Inspection: ...

    async def template(self) -> VM: ...

    async def snapshot(
        self, name: str | None = None, *, labels: Mapping[str, str] | None = None
    ) -> Snapshot: ...

    async def pause(self) -> None: ...

    async def resume(self) -> Instance: ...

    async def standby(self) -> None: ...

    async def restore(self) -> None: ...

    async def rewind(self, snapshot: str | None = None) -> None: ...

    async def stop(self, *, timeout: float | None = 10.0) -> Instance: ...

    async def start(self) -> None: ...

    async def root(self) -> GuestRoot | None: ...

    async def resize_disk(self, disk: str, size: str | int) -> ResizedDisk: ...

    async def wait(self) -> None: ...

    async def remove(self, *, force: bool = False, lost: bool = False) -> None: ...

    async def keep(self) -> VM: ...

    async def detach(self) -> VM: ...

    async def stats(self) -> Usage: ...

    async def exec(
        self,
        *argv: Word,
        stdin: bytes | str | Readable | None = None,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        timeout: float | None = None,
        check: bool = False,
        max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
    ) -> ExecResult: ...

    def process(
        self,
        *argv: Word,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        timeout: float | None = None,
        stdin: bool = False,
    ) -> AbstractAsyncContextManager[Process]: ...

    def start_main(self, *, stdin: bool = False) -> AbstractAsyncContextManager[Process]: ...

    async def spawn(
        self,
        *argv: Word,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        console: bool = True,
    ) -> int: ...

    async def logs(self, *, vmm: bool = False) -> bytes: ...

    def follow_logs(self, *, vmm: bool = False) -> AsyncIterator[bytes]: ...


class Snapshot(Forkable, Protocol):
    """A snapshot."""

    async def info(self) -> SnapshotInfo: ...

    async def inspect(self) -> SnapshotInspection: ...

    async def verify(self) -> Verification: ...

    async def export(self, file: str | os.PathLike[str]) -> Exported: ...

    async def remove(self) -> None: ...


class Host(Protocol):
    """A machine that runs instances, open."""

    async def __aenter__(self) -> Host: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def run(
        self,
        image: str = "builtin",
        *,
        name: str | None = None,
        memory: str | int = "256M",
        cpus: int = 1,
        driver: str = "auto",
        disks: Sequence[str | int] = (),
        labels: Mapping[str, str] | None = None,
        auto_remove: bool = False,
        command: Sequence[str] | None = None,
        entrypoint: Sequence[str] | None = None,
        env: Mapping[str, Word] | None = None,
        user: str | int | None = None,
        workdir: str | os.PathLike[str] | None = None,
        stop_signal: str | int | None = None,
        idle: bool = False,
        start_main: bool = True,
        rootfs: str | None = None,
        ca: Sequence[str | os.PathLike[str]] = (),
        pull: Literal["missing", "never", "always"] = "missing",
        platform: str | None = None,
        cold: bool = False,
    ) -> VM: ...

    async def pull(
        self, image: str, *, platform: str | None = None, prepare: bool = False
    ) -> ImageInspection: ...

    async def import_image(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        ref: str | None = None,
        platform: str | None = None,
    ) -> ImportedImage: ...

    async def push_image(self, image: str, target: str) -> PushedImage: ...

    async def images(self) -> builtins.list[ImageEntry]: ...

    async def image(self, image: str) -> ImageInspection: ...

    async def remove_image(self, image: str, *, force: bool = False) -> str: ...

    async def prune_images(self) -> PrunedImages: ...

    async def get(self, reference: str) -> VM: ...

    async def snapshot(self, reference: str) -> Snapshot: ...

    async def snapshots(
        self, of: str | None = None, *, labels: Mapping[str, str] | None = None
    ) -> builtins.list[SnapshotInfo]: ...

    async def import_snapshot(self, file: str | os.PathLike[str], *, name: str | None = None) -> Snapshot: ...

    async def list(
        self, *, everything: bool = False, labels: Mapping[str, str] | None = None
    ) -> builtins.list[Instance]: ...

    async def unreadable(self) -> builtins.list[UnreadableRecord]: ...

    async def remove_unreadable(self, reference: str) -> str: ...

    async def tree(self) -> builtins.list[LineageNode]: ...

    async def stats(self) -> builtins.list[Usage]: ...

    async def pool(self, *, wait: float | None = None) -> PoolReport: ...
