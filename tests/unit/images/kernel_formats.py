"""Small files in the formats that kernels come in, written from the specifications of those."""

from __future__ import annotations

import io
import lzma
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PT_INTERP = 3
PT_NOTE = 4
PVH_NOTE = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", 0x1000000)


def make_elf(
    *,
    segments: Sequence[tuple[int, bytes]] = (),
    sections: Mapping[bytes, bytes] | None = None,
    machine: int = 62,
) -> bytes:
    """An ELF64 file with these segments and sections. elf(5)."""
    names = b"\0" + b"".join(name + b"\0" for name in (sections or {})) + b".shstrtab\0"
    contents = [*(sections or {}).values(), names]
    data = bytearray(64 + 56 * len(segments))
    program_headers = b""
    for kind, content in segments:
        program_headers += struct.pack("<IIQQQQQQ", kind, 4, len(data), 0, 0, len(content), len(content), 4)
        data += content
    section_headers = bytes(64)
    for name, content in zip([*(sections or {}), b".shstrtab"], contents, strict=True):
        at = names.index(b"\0" + name + b"\0") + 1
        section_headers += struct.pack("<IIQQQQIIQQ", at, 1, 0, 0, len(data), len(content), 0, 0, 1, 0)
        data += content
    tables = struct.pack("<HHHHHH", 64, 56, len(segments), 64, len(contents) + 1, len(contents))
    identity = b"\x7fELF\x02\x01\x01"
    data[:64] = struct.pack("<16sHHIQQQI", identity, 2, machine, 1, 0, 64, len(data), 0) + tables
    data[64 : 64 + len(program_headers)] = program_headers
    return bytes(data) + section_headers


def make_bzimage(payload: bytes, *, version: str = "6.1.0-test", protocol: int = 0x20F) -> bytes:
    """A bzImage around `payload`. Documentation/arch/x86/boot.rst."""
    setup_sectors = 3
    head = bytearray((setup_sectors + 1) * 512)
    head[0x1F1] = setup_sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<HIHH", head, 0x206, protocol, 0, 0x1000, 0x400)
    struct.pack_into("<II", head, 0x248, 32, len(payload))
    text = f"{version} (builder@host) #1 SMP\0".encode()
    head[0x600 : 0x600 + len(text)] = text
    return bytes(head) + bytes(32) + payload


def make_module(name: str, *, depends: str = "", aliases: Sequence[str] = ()) -> bytes:
    """A kernel module of which only .modinfo is real."""
    entries = [f"depends={depends}", f"name={name}", *(f"alias={alias}" for alias in aliases)]
    return make_elf(sections={b".modinfo": b"".join(entry.encode() + b"\0" for entry in entries)})


def make_deb(
    path: Path,
    files: Mapping[str, bytes],
    *,
    links: Mapping[str, str] | None = None,
    control: bytes | None = None,
) -> Path:
    """A Debian package with these files, and with that file of its relations. deb(5), deb-control(5)."""
    relations = b"odd"
    if control is not None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            member = tarfile.TarInfo("./control")
            member.size = len(control)
            archive.addfile(member, io.BytesIO(control))
        relations = packed.getvalue()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.SYMTYPE
            member.linkname = target
            archive.addfile(member)
    out = b"!<arch>\n"
    for name, content in {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(relations),
        "data.tar.xz": lzma.compress(tar.getvalue()),
    }.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    path.write_bytes(out)
    return path
