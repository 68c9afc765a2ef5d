"""The configuration of a kernel, inside the kernel (`CONFIG_IKCONFIG`) or in a file beside it.

Source: Linux `kernel/configs.c`: a gzip stream between the texts `IKCFG_ST` and `IKCFG_ED`.
"""

from __future__ import annotations

import mmap
import re
import zlib
from pathlib import Path
from typing import Final

_START: Final = b"IKCFG_ST"
_LARGEST_BYTES: Final = 4 << 20
_FOR_PVM: Final = re.compile(rb"^CONFIG_PVM_GUEST=y$", re.MULTILINE)


def is_for_pvm(kernel: Path, version: str) -> bool:
    """Tell whether that unpacked kernel is known to have been built for PVM.

    False also for an unknown kernel.
    """
    for config in (_embedded(kernel), _beside(Path("/boot") / f"config-{version}")):
        if config is not None:
            return _FOR_PVM.search(config) is not None
    return False


def _embedded(kernel: Path) -> bytes | None:
    try:
        with kernel.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(_START)
            if start < 0:
                return None
            packed = content[start + len(_START) : start + len(_START) + _LARGEST_BYTES]
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, _LARGEST_BYTES)
    except (OSError, ValueError, zlib.error):
        return None


def _beside(file: Path) -> bytes | None:
    try:
        with file.open("rb") as opened:
            return opened.read(_LARGEST_BYTES)
    except OSError:
        return None
