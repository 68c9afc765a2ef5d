"""The ELF inside a compressed Linux kernel: QEMU boots it directly (PVH), quicker than the bzImage around it.

Sources: Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header"), include/xen/interface/elfnote.h,
lib/decompress_unlz4.c for the legacy LZ4 framing.
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path
from typing import Final

import lz4.block

from ramet.errors import DamagedError, UnavailableError
from ramet.images.compression import decompress
from ramet.images.elf import MAGIC as ELF_MAGIC
from ramet.images.elf import notes
from ramet.units import MIB, format_bytes

UNPACKED_LIMIT_BYTES: Final = 512 * MIB
"""Above the size of every kernel; a crafted kernel that claims to be larger ends here."""

_GZIP_MAGIC: Final = b"\x1f\x8b"
_SUFFIXES: Final = {
    _GZIP_MAGIC: ".gz",
    b"\xfd7zXZ\0": ".xz",
    b"\x5d\0\0": ".lzma",
    b"BZh": ".bz2",
    b"\x28\xb5\x2f\xfd": ".zst",
}
_LZ4_LEGACY_MAGIC: Final = bytes.fromhex("02214c18")
_LZ4_LEGACY_BLOCK_BYTES: Final = 8 * MIB
_XEN_ELFNOTE_PHYS32_ENTRY: Final = 18


def unpack_vmlinux(image: bytes, *, limit_bytes: int = UNPACKED_LIMIT_BYTES) -> bytes:
    """Return the ELF payload of a bzImage, and an ELF image unchanged.

    Raises `UnavailableError` when the image is neither, or its compression is one that ramet doesn't read
    (LZO), and `DamagedError` when the payload is cut, corrupt, larger than `limit_bytes` or no ELF file.
    """
    if image[:4] == ELF_MAGIC:
        return image
    elf = _decompress(_payload(image), limit_bytes)
    if elf[:4] != ELF_MAGIC:
        raise DamagedError("the kernel's payload is not an ELF file")
    return elf


def has_pvh_entry(elf: bytes) -> bool:
    """Tell whether the ELF file carries the note that QEMU's `-kernel` needs to boot it directly.

    Raises `DamagedError` if the file isn't ELF.
    """
    return any(note == (b"Xen", _XEN_ELFNOTE_PHYS32_ENTRY) for note in notes(elf))


def read_kernel_version(path: Path) -> str:
    """Read the release of a bzImage or an ELF kernel, as `uname -r` shows it.

    Reads a bzImage's header only; an ELF file is searched. Raises `DamagedError` for anything else, `OSError`
    when it can't be read.
    """
    with path.open("rb") as file:
        head = file.read(0x400)
        if head[0x202:0x206] == b"HdrS":
            (pointer,) = struct.unpack_from("<H", head, 0x20E)
            file.seek(0x200 + pointer)
            words = file.read(256).partition(b"\0")[0].split()
            if pointer and words:
                return words[0].decode("ascii", "replace")
        elif head[:4] == ELF_MAGIC:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                if match := re.search(rb"Linux version ([!-~]{1,128}) ", mapped):
                    return match[1].decode("ascii")
    raise DamagedError(f"{path} is not a Linux kernel", hint="it has to be a bzImage or a vmlinux")


def _payload(image: bytes) -> memoryview:
    if image[0x202:0x206] != b"HdrS":
        raise UnavailableError("the kernel is neither a bzImage nor an ELF file")
    if len(image) < 0x250 or struct.unpack_from("<H", image, 0x206)[0] < 0x208:
        raise UnavailableError(
            "the kernel's boot protocol is older than 2.08, which doesn't tell its payload"
        )
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    if length < 8 or start + length > len(image):
        raise DamagedError("the kernel is cut short: its header promises more than there is")
    return memoryview(image)[start : start + length]


def _decompress(payload: memoryview, limit_bytes: int) -> bytes:
    """Bounded by `limit_bytes`. The payload ends with its unpacked size: gzip's own or the build's."""
    head = bytes(payload[:6])
    if head.startswith(ELF_MAGIC):
        return bytes(payload)
    stream = payload if head.startswith(_GZIP_MAGIC) else payload[:-4]
    try:
        if head.startswith(_LZ4_LEGACY_MAGIC):
            unpacked = _unlz4_legacy(stream, limit_bytes)
        else:
            suffix = next((suffix for magic, suffix in _SUFFIXES.items() if head.startswith(magic)), None)
            if suffix is None:
                raise UnavailableError(f"the kernel's compression is not one that ramet reads ({head.hex()})")
            unpacked = decompress(suffix, stream, limit_bytes=limit_bytes)
    except DamagedError as error:
        raise DamagedError(f"the kernel's payload is damaged: {error.message}") from error
    (promised_bytes,) = struct.unpack_from("<I", payload, len(payload) - 4)
    if len(unpacked) != promised_bytes:
        raise DamagedError(f"the kernel's payload unpacks to {len(unpacked)} bytes of {promised_bytes}")
    return unpacked


def _unlz4_legacy(stream: memoryview, limit_bytes: int) -> bytes:
    blocks: list[bytes] = []
    size_bytes, position = 0, 4
    while position < len(stream):
        length_bytes = int.from_bytes(stream[position : position + 4], "little")
        position += 4
        if not 0 < length_bytes <= len(stream) - position:
            raise DamagedError("a block runs past the end")
        block = stream[position : position + length_bytes]
        try:
            blocks.append(lz4.block.decompress(block, uncompressed_size=_LZ4_LEGACY_BLOCK_BYTES))
        except lz4.block.LZ4BlockError as error:
            raise DamagedError(f"it can't be decompressed: {error}") from error
        size_bytes += len(blocks[-1])
        if size_bytes > limit_bytes:
            raise DamagedError(f"it unpacks to more than {format_bytes(limit_bytes)}")
        position += length_bytes
    return b"".join(blocks)
