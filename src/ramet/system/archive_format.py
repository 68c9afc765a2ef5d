"""The bytes of an archive, as its writer and its reader know them: records, bounds, waits.

Source: `docs/reference/archive.md`.
"""

from __future__ import annotations

import hashlib
import select
import struct
from typing import Final

from ramet.units import MIB

FORMAT: Final = 1
MAX_MANIFEST_BYTES: Final = 4 * MIB
MAX_PARTS: Final = 64
MAX_DATA_BYTES: Final = 4 * MIB
"""Largest data of a record."""
MAX_NAME_BYTES: Final = 255
# Not text: a file that was treated as text on its way is recognised by it.
MAGIC: Final = b"RAMET\r\n\x1a"
HEADER: Final = struct.Struct("<8sHBBIQ")
RECORD: Final = struct.Struct("<B3sIQ")
RESERVED: Final = bytes(3)
STORED: Final = 0  # the codec: unchanged data
PART, DATA, PART_END, END = 1, 2, 3, 4
DIGEST_BYTES: Final = hashlib.sha256().digest_size
POLL_MS: Final = 200


def go_on() -> None:
    """Do nothing: the checkpoint of a caller that never gives up."""


def is_ready(descriptor: int, event: int) -> bool:
    """Tell whether a descriptor became ready within 0.2 s."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(POLL_MS))
