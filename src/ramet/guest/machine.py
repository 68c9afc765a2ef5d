"""Requests about the guest's machine and the root of a container guest: shutdown, room, certificates.

Source: `docs/reference/protocol.md`, "Messages", "Trust" and "Shutdown".
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ramet.errors import ProtocolError, UsageError
from ramet.guest.fields import Fields, put_number, put_text, shown

_CERTIFICATE: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+\n-----END CERTIFICATE-----", re.ASCII
)


class RootKind(enum.IntEnum):
    """The place of what is written to `/` in a guest of a container image."""

    DISK = 1
    RAM = 2


@dataclass(frozen=True, slots=True)
class RootSpace:
    """The room of a container guest's root, as the guest gives it: in all, and free for programs.

    `free_files` is the number of files that can still be made; None if the agent doesn't tell.
    """

    kind: RootKind
    total_bytes: int
    free_bytes: int
    free_files: int | None = None

    @classmethod
    def decode(cls, value: bytes) -> RootSpace:
        """Decode the root field of LIST_DONE."""
        fields = Fields(value)
        try:
            kind = RootKind(fields.number(1, 1))
        except ValueError:
            raise ProtocolError("the guest's root is of no known kind") from None
        return cls(kind, fields.number(2, 8), fields.number(3, 8), fields.number_or_none(4, 8))


@dataclass(frozen=True, slots=True)
class Growth:
    """The size of a disk as its guest sees it, and of the filesystem on the disk after it grew."""

    device_bytes: int
    filesystem_bytes: int

    @classmethod
    def decode(cls, payload: bytes) -> Growth:
        """Decode GROW_DONE's payload."""
        fields = Fields(payload)
        return cls(fields.number(1, 8), fields.number(2, 8))


def shutdown(*, reboot: bool, grace_ms: int | None) -> bytes:
    """Encode SHUTDOWN's payload. Raises `UsageError` for a time that isn't one."""
    payload = put_number(1, 1, int(reboot))
    if grace_ms is None:
        return payload
    if not 0 <= grace_ms < 2**32:
        raise UsageError(f"{grace_ms} ms is no time to give a main process")
    return payload + put_number(2, 4, grace_ms)


def trust(certificates: Iterable[str]) -> bytes:
    """Encode TRUST's payload: each text is one certificate in PEM. Raises `UsageError` for what isn't."""
    texts = [certificate.replace("\r\n", "\n").strip() for certificate in certificates]
    if not texts:
        raise UsageError("there is no certificate to trust")
    for text in texts:
        if not _CERTIFICATE.fullmatch(text):
            raise UsageError("what is to be trusted isn't a certificate in PEM")
    return b"".join(put_text(1, f"{text}\n") for text in texts)


def trusted(payload: bytes) -> tuple[str, ...]:
    """Decode TRUST_DONE: the paths of the guest's bundles that have the certificates now."""
    paths = tuple(shown(value[:256]) for value in Fields(payload).all(1)[:16])
    if not paths:
        raise ProtocolError("the guest trusts nothing new and doesn't say why")
    return paths
