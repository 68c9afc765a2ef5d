"""Compression of a capture's memory: the part that the handles of an instance and a snapshot share."""

from __future__ import annotations

from collections.abc import Callable

from ramet.api.arguments import public
from ramet.calls import calls_into_host
from ramet.engine.context import Context
from ramet.engine.maintenance import compression
from ramet.model.schema import Compression


@calls_into_host()
class Compressible:
    """Base of the handles whose memory can be compressed. The subclass names the memory."""

    _context: Context

    def _target(self) -> compression.Target:
        """Return the memory of this snapshot or instance."""
        raise NotImplementedError

    @public
    async def compress(
        self, *, level: int | None = None, progress: Callable[[int, int], object] | None = None
    ) -> Compression:
        """Compress the memory of a snapshot, a template or an instance in standby, and remove the raw file.

        All CPUs compress, with zstd. `level` is 1 (fast) to 19 (small); the present level, or 3, unless
        given. The first fork afterwards decompresses the memory once, for all forks; both files stay until
        `compress` or `decompress` is called again. `progress(done_bytes, total_bytes)` is called from a
        worker thread, in bytes of the guest's memory.

            result = await snapshot.compress(level=3)
            print(result.raw_bytes, result.compressed_bytes)

        Raises `UsageError` for another level; `UnavailableError` when the capture has no digests;
        `WrongStateError` for an instance in another state, and when the instance was restored or stopped or
        an instance was rewound to the snapshot meanwhile; `LockBusyError` when another call works on the
        memory, or a fork still needs the raw file; `DamagedError`; `FilesystemError`.
        After an error it can be forked as before. It may have been compacted. If only the raw file couldn't
        be removed, it is compressed and has both files.
        """
        return await compression.compress(self._context, self._target(), level, progress)

    @public
    async def decompress(self, *, progress: Callable[[int, int], object] | None = None) -> Compression:
        """Decompress the memory, and remove the compressed file. Does nothing for raw memory.

        Errors as `compress`.
        """
        return await compression.decompress(self._context, self._target(), progress)
