"""Devices of a container image: which ones the agent mounts, and with what words it refuses the others."""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from ramet.images.erofs.blob import mark
from ramet.images.erofs.format import first_block

from .conftest import shared_library

BLOCK = 4096
_ZEROS = "0" * 32
MOUNT = "mount own at /base: "

# The kernel's arguments, the disks and mount(2) are the test's: a disk is the file of that name.
_AROUND = """
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>
#include "init/block.h"
#include "init/cmdline.h"
#include "init/console.h"
char arguments[4096], directory[4096], said[8192];
int refusal;
void init_command_line(char *line, size_t size) { snprintf(line, size, "%s", arguments); }
void init_say(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(said, sizeof said, format, list);
    va_end(list);
}
bool block_find(const struct block_name *name, char path[BLOCK_PATH_MAX]) {
    if (strlen(name->serial) >= BLOCK_PATH_MAX)
        return false;
    strcpy(path, name->serial);
    return chdir(directory) == 0 && access(path, F_OK) == 0;
}
static int mount_of_test(const char *device, const char *at, const char *type, unsigned long flags,
                         const void *options) {
    snprintf(said, sizeof said, "mount %s at %s: %s", device, at, (const char *)options);
    if (refusal == 0 && (strcmp(type, "erofs") != 0 || flags != MS_RDONLY))
        snprintf(said, sizeof said, "mount(2) of something else");
    errno = refusal;
    return refusal == 0 ? 0 : -1;
}
#define mount mount_of_test
#include "init/bases.c"
"""


class Device(NamedTuple):
    serial: str
    data: bytes
    digest: str

    @property
    def blocks(self) -> int:
        return len(self.data) // BLOCK

    @property
    def sealed(self) -> bytes:
        return self.data + mark(self.blocks, self.digest)

    @property
    def argument(self) -> str:
        return f"ramet.base=1,{self.serial}:{self.blocks}:{self.digest[:32]}"


def device(serial: str, data: bytes) -> Device:
    return Device(serial, data, hashlib.sha256(data).hexdigest())


LAYERS = (device("l1", b"1" * 3 * BLOCK), device("l2", b"2" * 5 * BLOCK))


def image(lengths: Sequence[int]) -> Device:
    """An image's own file with a table of such devices, and one block behind it."""
    first = first_block(root_nid=40, inodes=1, blocks=2, xattr_block=0, device_blocks=lengths)
    return device("own", first + b"o" * BLOCK)


OWN = image([3, 5])


class Bases:
    """The agent's code, with a directory in which it finds disks."""

    def __init__(self, library: ctypes.CDLL, directory: Path) -> None:
        self.directory = directory
        self._library = library
        self._set("directory", str(directory))
        self.refuse(0)
        for each in (OWN, *LAYERS):
            self.put(each.serial, each.sealed)

    def _set(self, name: str, text: str) -> None:
        where = ctypes.addressof(ctypes.c_char.in_dll(self._library, name))
        ctypes.memmove(where, text.encode() + b"\0", len(text.encode()) + 1)

    def put(self, serial: str, data: bytes) -> None:
        (self.directory / serial).write_bytes(data)

    def refuse(self, error: int) -> None:
        ctypes.c_int.in_dll(self._library, "refusal").value = error

    def mount(self, *arguments: str) -> tuple[bool, str]:
        self._set("arguments", " ".join(("quiet", *arguments, "panic=-1")))
        mounted = self._library.bases_mount(b"/base")
        text = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(self._library, "said")))
        return mounted, text.decode()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("bases")
    around, block = directory / "around.c", directory / "names.c"
    around.write_text(_AROUND)
    block.write_text('#define block_find real_block_find\n#include "init/block.c"\n')
    cmdline = directory / "cmdline.c"
    cmdline.write_text('#define init_command_line real_command_line\n#include "init/cmdline.c"\n')
    loaded = ctypes.CDLL(str(shared_library(directory, str(around), str(block), str(cmdline))))
    loaded.bases_mount.restype = ctypes.c_bool
    return loaded


@pytest.fixture
def bases(library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bases:
    monkeypatch.chdir(tmp_path)  # put back afterwards: the code under test changes it
    return Bases(library, tmp_path)


ALL = (OWN.argument, *(layer.argument for layer in LAYERS))


def test_an_image_is_mounted_with_its_layers_in_order(bases: Bases) -> None:
    assert bases.mount(*ALL) == (True, MOUNT + "device=l1,device=l2")


def test_an_image_alone(bases: Bases) -> None:
    own = image([])
    bases.put("own", own.sealed)
    assert bases.mount(own.argument) == (True, MOUNT)


def not_what_it_is(serial: str, why: str) -> tuple[bool, str]:
    return False, f"ramet: base {serial} isn't what the image says: {why}"


def test_a_device_of_another_length_is_refused(bases: Bases) -> None:
    bases.put("l1", LAYERS[0].sealed[:-BLOCK])
    assert bases.mount(*ALL) == not_what_it_is("l1", "it has 12288 bytes instead of 16384")
    bases.put("l1", LAYERS[0].sealed + bytes(512))
    assert bases.mount(*ALL) == not_what_it_is("l1", "it has 16896 bytes instead of 16384")


def test_a_layer_of_the_same_length_is_still_another(bases: Bases) -> None:
    bases.put("l1", device("l1", b"x" * 3 * BLOCK).sealed)
    assert bases.mount(*ALL) == not_what_it_is("l1", "it is another image's or layer's")


def test_the_order_of_layers_is_the_images_own(bases: Bases) -> None:
    assert bases.mount(ALL[0], ALL[2], ALL[1]) == not_what_it_is("own", "its layers come in another order")


@pytest.mark.parametrize("count", [1, 2])
def test_a_layer_that_is_not_given_is_missed(bases: Bases, count: int) -> None:
    """Linux 6.18 mounts such an image, and answers with wrong data."""
    assert bases.mount(*ALL[:count]) == not_what_it_is("own", "it has another number of layers")


def test_a_device_that_is_not_there(bases: Bases) -> None:
    (bases.directory / "l2").unlink()
    assert bases.mount(*ALL) == not_what_it_is("l2", "there is no such disk")


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, b"R", "its last block is no mark"),
        (16, struct.pack("<I", 2), "its mark has another version"),
        (24, struct.pack("<Q", 4), "its mark gives another length"),
        (32, b"\0" * 16, "it is another image's or layer's"),
    ],
)
def test_a_mark_says_whose_it_is(bases: Bases, at: int, value: bytes, why: str) -> None:
    sealed = bytearray(LAYERS[0].sealed)
    sealed[3 * BLOCK + at : 3 * BLOCK + at + len(value)] = value
    bases.put("l1", bytes(sealed))
    assert bases.mount(*ALL) == not_what_it_is("l1", why)


@pytest.mark.parametrize(
    "value",
    [
        *("", "own", "0,own", "0,own:2", f"0,own:x:{_ZEROS}", f"0,own:2:{_ZEROS[1:]}", f"0,own:2:{'G' * 32}"),
        *(f"26,own:2:{_ZEROS}", f",own:2:{_ZEROS}", f"-1,own:2:{_ZEROS}", f"0,own:0:{_ZEROS}"),
        *(f"0,{'s' * 32}:2:{_ZEROS}", f"0,own:4294967296:{_ZEROS}", f"0,own:2:{'0' * 65}", "x" * 300),
    ],
)
def test_an_argument_that_is_not_one(bases: Bases, value: str) -> None:
    mounted, said = bases.mount(f"ramet.base={value}")
    assert not mounted
    assert said.endswith("isn't understood")


def test_no_more_than_six_devices(bases: Bases) -> None:
    own = image([3] * 6)
    bases.put("own", own.sealed)
    mounted, said = bases.mount(own.argument, *[ALL[1]] * 6)
    assert (mounted, "isn't understood" in said) == (False, True)
    five = image([3] * 5)
    bases.put("own", five.sealed)
    assert bases.mount(five.argument, *[ALL[1]] * 5)[0]


@pytest.mark.parametrize(
    ("error", "why"),
    [(19, "this kernel has no EROFS"), (22, "this kernel doesn't take it"), (12, "Cannot allocate")],
)
def test_a_mount_that_the_kernel_refuses(bases: Bases, error: int, why: str) -> None:
    bases.refuse(error)
    mounted, said = bases.mount(*ALL)
    assert not mounted
    assert said.startswith(f"ramet: the image can't be mounted: {why}")


def test_no_device_at_all(bases: Bases) -> None:
    assert bases.mount() == (False, "ramet: there is no ramet.base= for the image")
