"""Blobs by digest in the cache: fetched once, verified while they are written, resumed after a cut.

A directory of blobs has three parts: `blobs/ALGORITHM/HEX`, as an OCI image layout has them, whole and
read-only; `partial/`, what a cut or a killed process left, to be resumed; `locks/`, a lock file per digest,
so that two pulls of one blob at once, in one process or two, fetch it once.

Sources: OCI image-spec, image-layout.md, "Blobs"; descriptor.md, "Verification".
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import anyio

from ramet.errors import DamagedError, FilesystemError, LockBusyError, RegistryError
from ramet.oci.digests import Digest
from ramet.oci.documents import Descriptor
from ramet.system import threads
from ramet.system.files import filesystem_errors, free_bytes, open_regular, write_all
from ramet.system.locks import file_lock
from ramet.system.publishing import publish, temporary_beside, write_durably
from ramet.units import format_bytes

_READ_BYTES: Final = 1 << 20
_WRITE_BYTES: Final = 1 << 20
"""Bytes that are hashed and written at once, in a thread."""
_MOST_TRIES_WITHOUT_PROGRESS: Final = 5
_MOST_CUTS: Final = 200
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Part(Protocol):
    """Some content from an offset on, as its source gives it."""

    @property
    def offset(self) -> int:
        """The first byte's place in the blob: 0 if the source can't begin in the middle."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes. Raises `CutError` if the source is cut off."""


Source = Callable[[Digest, int, int], AbstractAsyncContextManager[Part]]
"""Opens a blob: its digest, the wanted offset, its size. Raises `CutError` when it may be tried again."""


class CutError(RegistryError):
    """A transfer ended early. What arrived is kept; another try resumes it."""


class SlowError(CutError):
    """A transfer is slower than is of use. What arrived is kept, and counts as no progress."""


@dataclass(frozen=True)
class Patience:
    """Pauses between the tries after a cut, growing; and the longest wait for another pull of the blob."""

    first_s: float = 0.2
    longest_s: float = 10.0
    lock_s: float = 6 * 3600.0


class BlobCache:
    """The blobs below one directory. Processes share it."""

    def __init__(self, directory: Path, *, patience: Patience | None = None) -> None:
        self._directory = directory
        self._patience = patience or Patience()

    def path(self, digest: Digest) -> Path:
        """Return the place of a blob, whether it is there or not."""
        return self._directory / "blobs" / digest.algorithm / digest.hexadecimal

    def partial(self, digest: Digest) -> Path:
        """Return the place of a blob's beginning, while it is fetched and after a cut."""
        return self._directory / "partial" / digest.file_name

    def has(self, digest: Digest, size: int) -> bool:
        """Tell whether the blob is there with that size. A file that was cut afterwards isn't."""
        try:
            facts = self.path(digest).lstat()
        except OSError:
            return False
        return stat.S_ISREG(facts.st_mode) and facts.st_size == size

    async def verify(self, digest: Digest) -> None:
        """Read a whole blob. Raises `DamagedError` if its content isn't its digest's: discard it then."""
        path = self.path(digest)
        with filesystem_errors("read", path):
            found = await threads.run(_hash_file, path, digest)
        if found != digest.hexadecimal:
            raise DamagedError(
                f"{path} isn't what its name says: its digest is {digest.algorithm}:{found}",
                hint="pull the image again: the next pull fetches what is missing",
            )

    async def drop_wrong(self, blobs: Iterable[Descriptor]) -> int:
        """Read whole blobs, and remove those that aren't what their names say. Returns their number.

        `fetch` trusts what is there; it fetches them anew then.
        """
        dropped = 0
        for blob in blobs:
            digest = blob.checked_digest
            if not self.has(digest, blob.size):
                continue
            try:
                await self.verify(digest)
            except DamagedError:
                await self.discard(digest)
                dropped += 1
        return dropped

    async def discard(self, digest: Digest) -> None:
        """Remove a blob and what there is of its beginning. Those who have it open keep it."""
        async with self._locked(digest):
            for path in (self.path(digest), self.partial(digest)):
                with filesystem_errors("remove", path):
                    path.unlink(missing_ok=True)

    async def put(self, content: bytes, digest: Digest) -> Path:
        """Keep a small blob that is in memory. Raises `DamagedError` if it isn't the digest's."""
        if not digest.matches(content):
            raise DamagedError(f"{len(content)} bytes aren't what their digest {digest} names")
        path = self.path(digest)
        if await self.read(digest, len(content)) != content:
            self._make_directories(digest)
            await threads.run(_write_small, path, content)
        return path

    def scratch(self) -> Path:
        """Return a name for a new file, to be written and then adopted. Raises `FilesystemError`."""
        place = self._directory / "partial"
        with filesystem_errors("make", place):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        return temporary_beside(place / "made")

    def adopt(self, made: Path, digest: Digest) -> None:
        """Publish a synced file, whose digest the caller has computed, as a blob. Blocks."""
        self._make_directories(digest)
        made.chmod(0o444)
        publish(made, self.path(digest))

    async def read(self, digest: Digest, size: int) -> bytes | None:
        """Return a small blob that is whole; None if it isn't there or isn't what its name says."""
        if not self.has(digest, size):
            return None
        try:
            content = await threads.run(self.path(digest).read_bytes)
        except OSError:
            return None  # it is fetched again then
        return content if digest.matches(content) else None

    async def read_whole(self, digest: Digest, *, most_bytes: int) -> bytes | None:
        """Return a small blob of unknown size; None as `read`, and if it has more than `most_bytes`."""
        try:
            size = self.path(digest).lstat().st_size
        except OSError:
            return None
        return await self.read(digest, size) if size <= most_bytes else None

    async def fetch(
        self, descriptor: Descriptor, source: Source, *, on_bytes: Callable[[int], None] = lambda _: None
    ) -> Path:
        """Return the path of a blob, and fetch it from `source` if it isn't there.

        `on_bytes` is called with each number of bytes that is on the disk now: resumed ones too, and a
        negative number if they turn out to be useless. When this returns, the sum is the blob's size.

        Raises `DamagedError` for content that isn't the digest's, which is removed; `RegistryError` when the
        source fails for good: what arrived is kept for the next time; `FilesystemError` when the disk is
        full: what arrived is removed then. In each case nothing is published.
        """
        digest = descriptor.checked_digest
        if self.has(digest, descriptor.size):
            on_bytes(descriptor.size)
            return self.path(digest)
        async with self._locked(digest):
            if self.has(digest, descriptor.size):  # another pull has fetched it meanwhile
                on_bytes(descriptor.size)
            else:
                await self._fetch(descriptor, source, on_bytes)
        return self.path(digest)

    def _locked(self, digest: Digest) -> AbstractAsyncContextManager[int]:
        self._make_directories(digest)
        busy = LockBusyError(
            f"another pull of the blob {digest.short} hasn't ended within {self._patience.lock_s:g} s",
            hint="end that pull, or try again later",
        )
        lock = self._directory / "locks" / digest.file_name
        return file_lock(lock, wait_s=self._patience.lock_s, busy=busy)

    def _make_directories(self, digest: Digest) -> None:
        places = (self.path(digest).parent, self._directory / "partial", self._directory / "locks")
        for place in places:
            with filesystem_errors("make", place):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def _fetch(self, descriptor: Descriptor, source: Source, on_bytes: Callable[[int], None]) -> None:
        digest = descriptor.checked_digest
        path = self.partial(digest)
        with filesystem_errors("write", path):
            descriptor_of_file = _open_partial(path)
        try:
            try:
                writer = _Writer(descriptor_of_file, digest, descriptor.size, on_bytes)
                with filesystem_errors("write", path):
                    await threads.run(writer.resume)
                    writer.require_room()
                await self._fill(writer, source, path)
                with filesystem_errors("publish", self.path(digest)):
                    os.fchmod(descriptor_of_file, 0o444)
            finally:
                os.close(descriptor_of_file)
        except FilesystemError as error:
            if error.number in _FULL:
                path.unlink(missing_ok=True)
            raise
        except DamagedError:
            path.unlink(missing_ok=True)
            raise
        await threads.run(publish, path, self.path(digest))

    async def _fill(self, writer: _Writer, source: Source, path: Path) -> None:
        """Fetch until the blob is whole, through cuts."""
        resumed = writer.done
        while True:
            await self._fetch_rest(writer, source, path)
            found = writer.hexadecimal
            if found == writer.digest.hexadecimal:
                return
            if not resumed:
                raise DamagedError(
                    f"the registry sent something else than blob {writer.digest}: its digest is {found}",
                    hint="try again; if that doesn't help, the registry or a proxy before it is broken",
                )
            # The beginning was another process's, and a crash of the machine may have eaten it.
            resumed = 0
            with filesystem_errors("write", path):
                writer.restart()

    async def _fetch_rest(self, writer: _Writer, source: Source, path: Path) -> None:
        pause_s, vain, cuts = self._patience.first_s, 0, 0
        while writer.done < writer.size:
            before = writer.done
            try:
                async with source(writer.digest, before, writer.size) as part:
                    await _copy(part, writer, path)
                if writer.done < writer.size:
                    raise CutError(
                        f"blob {writer.digest.short} ended after {writer.done} of {writer.size} bytes"
                    )
            except CutError as error:
                cuts += 1
                is_vain = writer.done == before or isinstance(error, SlowError)
                vain, pause_s = (vain + 1, pause_s) if is_vain else (0, self._patience.first_s)
                if vain >= _MOST_TRIES_WITHOUT_PROGRESS or cuts > _MOST_CUTS:
                    raise RegistryError(
                        f"{error.message}, and {cuts} further tries didn't complete it",
                        hint=error.hint or "try again later: what has arrived is kept",
                    ) from error
            else:
                return
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, self._patience.longest_s)


class _Writer:
    """A blob's beginning in a file, with the hash of it."""

    def __init__(self, descriptor: int, digest: Digest, size: int, on_bytes: Callable[[int], None]) -> None:
        self.digest = digest
        self.size = size
        self.done = 0
        self._descriptor = descriptor
        self._hash: Any = digest.hasher()
        self._on_bytes = on_bytes

    @property
    def hexadecimal(self) -> str:
        return str(self._hash.hexdigest())

    def resume(self) -> None:
        """Take what is in the file as the beginning. Blocks: it is read and hashed."""
        length = os.fstat(self._descriptor).st_size
        if length > self.size:
            os.ftruncate(self._descriptor, 0)
            return
        while data := os.pread(self._descriptor, _READ_BYTES, self.done):
            self._hash.update(data)
            self.done += len(data)
        self._on_bytes(self.done)

    def require_room(self) -> None:
        """Raise `OSError` (ENOSPC) if what is missing can't fit."""
        free = free_bytes(self._descriptor)
        missing = self.size - self.done
        if free is not None and free < missing:
            why = f"a blob needs {format_bytes(missing)} more, and {format_bytes(free)} are free"
            raise OSError(errno.ENOSPC, why)

    def restart(self) -> None:
        """Forget all that was written."""
        os.ftruncate(self._descriptor, 0)
        self._on_bytes(-self.done)
        self.done = 0
        self._hash = self.digest.hasher()

    def write(self, data: bytes) -> None:
        """Append. Blocks."""
        write_all(self._descriptor, data, self.done)
        self._hash.update(data)
        self.done += len(data)

    def tell(self, written: int) -> None:
        self._on_bytes(written)


def _open_partial(path: Path) -> int:
    """Open a blob's beginning to be continued, or a new file in place of what is nobody's beginning of ours.

    Where others can write, there may be a link to elsewhere, or a file that another user has open.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        facts = path.lstat()
        is_ours = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and facts.st_uid == os.geteuid()
        if is_ours:
            return os.open(path, flags)
        path.unlink()
    except FileNotFoundError:
        pass
    return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)


async def _copy(part: Part, writer: _Writer, path: Path) -> None:
    """Write what arrives, at most to the blob's size."""
    if part.offset not in (0, writer.done):
        raise RegistryError(
            f"the registry sent blob {writer.digest.short} from another byte than was asked for"
        )
    if part.offset != writer.done:
        with filesystem_errors("write", path):
            writer.restart()
    pending = bytearray()

    async def flush() -> None:
        data = bytes(pending)
        pending.clear()
        with filesystem_errors("write", path):
            await threads.run(writer.write, data)
        writer.tell(len(data))

    try:
        async for chunk in part.chunks():
            if writer.done + len(pending) + len(chunk) > writer.size:
                raise DamagedError(
                    f"the registry sent more than the {writer.size} bytes of blob {writer.digest}",
                    hint="try again; if that doesn't help, the registry or a proxy before it is broken",
                )
            pending += chunk
            if len(pending) >= _WRITE_BYTES:
                await flush()
    except CutError:
        if pending:
            await flush()
        raise
    if pending:
        await flush()


def _hash_file(path: Path, digest: Digest) -> str:
    hasher = digest.hasher()
    with open_regular(path) as descriptor:
        offset = 0
        while data := os.pread(descriptor, _READ_BYTES, offset):
            hasher.update(data)
            offset += len(data)
    return str(hasher.hexdigest())


def _write_small(path: Path, content: bytes) -> None:
    write_durably(path, content, mode=0o444)
