"""A handle: it stands for something of one open Host, in this process."""

from __future__ import annotations

from typing import NoReturn, Self

from ramet.errors import UsageError


class Handle:
    """Base of users' handles. A copy is the same handle; another process can't have one."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        kind = type(self).__name__
        raise UsageError(
            f"a {kind} can't be pickled: it belongs to its Host, in this process",
            hint="send the id of what it stands for, open a Host there, and ask it: host.get(id)",
        )
