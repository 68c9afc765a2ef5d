"""Chains of qcow2 files: a frozen file under each overlay, all in one directory. Read, and shortened.

An image's header may name any file of the host as its backing file, or a server somewhere. So an image from
elsewhere is read here before a VMM opens it, and anything but a chain of the kind that ramet makes is
refused.

Source: QEMU's docs/interop/qcow2.rst, "Header", "Header extensions"; qemu-img(1), "convert".
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from ramet.disk.qcow2 import BACKING_FORMAT, EXTENSION, HEADER, MAGIC
from ramet.errors import DamagedError, FilesystemError
from ramet.programs import Program
from ramet.system import outside
from ramet.system.files import allocated_bytes, filesystem_errors, open_regular
from ramet.system.publishing import publish, temporary_beside
from ramet.units import MIB, TIB

LONGEST_CHAIN: Final = 256
"""Files. Chains are shortened long before."""
_READ_BYTES: Final = 4096
_CLUSTER_BITS: Final = range(9, 22)
_LARGEST_BYTES: Final = 64 * TIB
_LONGEST_NAME: Final = 255
_FILE_NAME: Final = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9._-]*")
_NEXT_STEP: Final = "go back to a snapshot that `ramet snapshot verify` finds whole"
_IDENTICAL: Final = b"Images are identical."
"""Output of `qemu-img compare` for equal images (QEMU's qemu-img.c)."""
_CONVERT_BASE_S: Final = 60.0
_CONVERT_BYTES_A_S: Final = 8 * MIB


class ImageFacts(NamedTuple):
    """The facts in a qcow2 file's header: the size that a guest sees, and the backing file."""

    size_bytes: int
    backing: str | None


def image_facts(path: Path) -> ImageFacts:
    """Read the facts in an image's header, of which 4 KiB are read.

    Raises `DamagedError` for an image that ramet didn't make: it has to be version 2 or 3, without features
    that change the meaning of the rest (encryption, a data file elsewhere), and its backing file, if any, is
    a qcow2 file with a plain name in the same directory. `FilesystemError` when it can't be read.
    """
    with filesystem_errors("read", path), open_regular(path) as descriptor:
        head = os.pread(descriptor, _READ_BYTES, 0)
    if len(head) < HEADER.size:
        raise _damaged(f"{path} is no qcow2 image: it is too short")
    (magic, version, name_offset, name_bytes, cluster_bits, size_bytes, encryption, *_rest) = HEADER.unpack(
        head[: HEADER.size]
    )
    if magic != MAGIC:
        raise _damaged(f"{path} is no qcow2 image")
    if version not in (2, 3):
        raise _damaged(f"{path} is a qcow2 image of version {version}, which isn't known")
    incompatible, header_bytes = (_rest[6], _rest[10]) if version == 3 else (0, 72)
    if encryption != 0 or incompatible != 0:
        raise _damaged(f"{path} is a qcow2 image with features that ramet gives to none")
    if (
        cluster_bits not in _CLUSTER_BITS
        or not 0 < size_bytes <= _LARGEST_BYTES
        or not 72 <= header_bytes <= 512
    ):
        raise _damaged(f"{path} is a damaged qcow2 image: its header makes no sense")
    if name_offset == 0:
        return ImageFacts(size_bytes, None)
    name = head[name_offset : name_offset + name_bytes]
    if not header_bytes < name_offset or not 0 < name_bytes <= _LONGEST_NAME or len(name) != name_bytes:
        raise _damaged(f"{path} is a damaged qcow2 image: its backing file's name isn't in its header")
    if not _FILE_NAME.fullmatch(name):
        raise _damaged(
            f"{path} lies over {name.decode(errors='replace')!r}, which is no file of the same directory"
        )
    # Without the format QEMU would guess, and what a guest wrote to a raw file can look like anything.
    if _backing_format(head, header_bytes, name_offset) != b"qcow2":
        raise _damaged(f"{path} doesn't say that the file under it is a qcow2 image")
    return ImageFacts(size_bytes, name.decode())


def backing_of(path: Path) -> str | None:
    """Return the name of an image's backing file, in the same directory. Errors as `image_facts`."""
    return image_facts(path).backing


def chain_of(directory: Path, file: str) -> tuple[str, ...]:
    """List the files that make up an image, the lowest first, `file` the last.

    Raises `DamagedError` when a file is missing or `image_facts` refuses it, and for a chain that is circular
    or longer than `LONGEST_CHAIN`; `FilesystemError` when a file can't be read.
    """
    chain = [file]
    while True:
        if not (directory / chain[-1]).exists():
            raise _damaged(f"{directory / chain[-1]} is missing")
        backing = backing_of(directory / chain[-1])
        if backing is None:
            return tuple(reversed(chain))
        if backing in chain:
            raise _damaged(f"{directory / chain[-1]} lies over {backing}, which lies over it")
        if len(chain) == LONGEST_CHAIN:
            raise _damaged(f"{directory / file} lies over more than {LONGEST_CHAIN - 1} files")
        chain.append(backing)


def find_qemu_img() -> str:
    """QEMU's tool for images. Raises `UnavailableError` naming the package that has it."""
    return Program("qemu-img", "qemu-img", hint="install the package qemu-utils (Debian, Ubuntu)").path()


def flatten_chain(directory: Path, files: Sequence[str], out: Path, *, mode: int = 0o444) -> None:
    """Make `out`, one qcow2 file with the content of the frozen chain `files` (lowest first) in `directory`.

    The chain is only read; `out` must not exist, and gets its name when it is whole and durable. Whole means
    compared with the chain, byte for byte as a guest sees them: on a full disk a broken qcow2 file can look
    whole. The time is bounded by the chain's size. Raises `DamagedError` when the chain is another,
    `UnavailableError` without qemu-img, `FilesystemError`; there is no `out` then.
    """
    program = find_qemu_img()
    if chain_of(directory, files[-1]) != tuple(files):
        raise _damaged(f"{directory / files[-1]} lies over other files than its manifest says")
    with filesystem_errors("read", directory):
        occupied_bytes = sum(allocated_bytes(directory / name) for name in files)
    if out.exists():
        raise FilesystemError(
            f"can't make {out}: it exists", hint="it may belong to another capture, and is left alone"
        )
    temporary = temporary_beside(out)
    made = str(temporary.absolute())
    limit_s = _CONVERT_BASE_S + occupied_bytes / _CONVERT_BYTES_A_S
    tool = partial(_qemu_img, program, directory, out, limit_s)
    try:
        done = tool("convert", "-f", "qcow2", "-O", "qcow2", files[-1], made)
        if done.failed:
            raise _unfinished(directory / files[-1], out, done.last_words)
        if image_facts(temporary) != ImageFacts(image_facts(directory / files[-1]).size_bytes, None):
            raise _damaged(f"what qemu-img made of {directory / files[-1]} isn't what was asked for")
        compared = tool("compare", "-f", "qcow2", "-F", "qcow2", files[-1], made)
        if compared.failed or compared.stdout.strip() != _IDENTICAL:
            output = compared.stdout.decode(errors="replace").strip() or compared.last_words
            raise _unfinished(directory / files[-1], out, f"{done.last_words} {output}".strip())
        with filesystem_errors("close", temporary):
            temporary.chmod(mode)
        publish(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _qemu_img(program: str, directory: Path, out: Path, limit_s: float, *words: str) -> outside.Outcome:
    try:
        return outside.run([program, *words], cwd=directory, limit_s=limit_s)
    except TimeoutError:
        raise FilesystemError(
            f"can't make {out}: qemu-img takes too long", hint="the chain is unchanged, and is tried again"
        ) from None
    except OSError as error:
        raise FilesystemError(
            f"can't make {out}: {program} can't be run: {error.strerror or error}", number=error.errno
        ) from error


def _unfinished(chain: Path, out: Path, output: str) -> FilesystemError:
    return FilesystemError(
        f"can't make {out} of {chain}: {output[-300:]}",
        hint="the chain is unchanged, and is tried again; `ramet snapshot verify` reads all of it",
    )


def _backing_format(head: bytes, at: int, end: int) -> bytes | None:
    """Return the header extension that gives the backing file's format, or None when there is none."""
    while at + EXTENSION.size <= min(end, len(head)):
        kind, length = EXTENSION.unpack_from(head, at)
        at += EXTENSION.size
        if kind == 0:
            return None
        if kind == BACKING_FORMAT:
            return head[at : at + length]
        at += -(-length // 8) * 8
    return None


def _damaged(message: str) -> DamagedError:
    return DamagedError(message, hint=_NEXT_STEP)
