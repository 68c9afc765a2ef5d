"""A machine's own addresses as the agent finds them, in a network namespace with known ones."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SOURCES

_SET_UP = """
ip link set lo up
ip addr add 10.9.9.9/32 dev lo
ip addr add 2001:db8::9/128 dev lo
ip link add one type veth peer name two
ip addr add 10.1.2.3/24 dev one
ip addr add 10.1.2.4/24 dev one label one:4
ip addr add 192.0.2.77/32 dev two
ip addr add 2001:db8::7/64 dev one nodad
ip link set one up
ip link set two up
exec "$@"
"""
_NAMED_MORE = 'for n in $(seq 20 60); do ip addr add 10.2.0.$n/32 dev two; done; exec "$@"'
_ASK = """
import json, sys
from tests.guest.test_addresses import addresses
print(json.dumps(addresses(sys.argv[1])))
"""


class Writer(ctypes.Structure):
    """`struct wire_writer` of wire.h."""

    _fields_ = (
        ("buffer", ctypes.c_void_p),
        ("length", ctypes.c_uint32),
        ("capacity", ctypes.c_uint32),
        ("full", ctypes.c_bool),
    )


def addresses(library: str) -> list[str]:
    """What the agent's code finds here, asked twice: its descriptors stay open."""
    loaded = ctypes.CDLL(library)
    buffer = ctypes.create_string_buffer(4096)
    found: list[list[str]] = []
    for _ in range(2):
        writer = Writer(ctypes.addressof(buffer), 0, len(buffer), False)
        loaded.addresses_put(ctypes.byref(writer), 6)
        data, texts = buffer.raw[: writer.length], []
        while data:
            assert data[0] == 6
            end = 5 + int.from_bytes(data[1:5], "little")
            texts.append(data[5:end].decode())
            data = data[end:]
        found.append(texts)
    assert found[0] == found[1]
    return found[0]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    if not shutil.which("ip") or subprocess.run(["unshare", "--net", "true"], check=False).returncode != 0:
        pytest.skip("no network namespace can be made here")
    library = tmp_path_factory.mktemp("addresses") / "addresses.so"
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    sources = [SOURCES / "addresses.c", SOURCES / "wire.c"]
    subprocess.run([compiler, *flags, "-o", library, *sources], check=True, timeout=60)
    return library


def _there(library: Path, *scripts: str) -> list[str]:
    words = [sys.executable, "-c", _ASK, str(library)]
    for script in reversed(scripts):
        words = ["sh", "-ec", script, "sh", *words]
    said = subprocess.run(
        ["unshare", "--net", *words], capture_output=True, text=True, check=True, timeout=60
    )
    answer = json.loads(said.stdout)
    assert isinstance(answer, list)
    return answer


def test_every_interfaces_but_the_loopbacks_and_ipv4_first(library: Path) -> None:
    found = _there(library, _SET_UP)
    assert set(found) == {"10.1.2.3", "10.1.2.4", "192.0.2.77", "2001:db8::7"}
    assert found[-1] == "2001:db8::7", "no link-local one, and IPv6 last"


def test_a_namespace_with_nothing_but_lo_has_none(library: Path) -> None:
    assert _there(library, 'ip link set lo up; exec "$@"') == []


def test_more_than_sixteen_are_cut_off(library: Path) -> None:
    assert len(_there(library, _SET_UP, _NAMED_MORE)) == 16
