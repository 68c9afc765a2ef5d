"""A machine's own addresses as the agent finds them, in a network namespace with known ones."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .conftest import shared_library, with_events

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
from tests.unit.guest.test_addresses import Agent
print(json.dumps(Agent(sys.argv[1]).addresses()))
"""
_ASK_AGAIN = """
import json, subprocess, sys
from tests.unit.guest.test_addresses import Agent
agent = Agent(sys.argv[1])
said = [agent.addresses()]
for change in sys.argv[2:]:
    assert not agent.is_told()
    subprocess.run(["ip", *change.split()], check=True)
    assert agent.is_told()
    assert agent.addresses() == said[-1], "it looks only when it is told"
    agent.loaded.addresses_event()
    assert not agent.is_told()
    said.append(agent.addresses())
print(json.dumps(said))
"""


class Writer(ctypes.Structure):
    """`struct wire_writer` of link/wire.h."""

    _fields_ = (
        ("buffer", ctypes.c_void_p),
        ("length", ctypes.c_uint32),
        ("capacity", ctypes.c_uint32),
        ("full", ctypes.c_bool),
    )


class Agent:
    """The agent's code, in this process; its event loop is the test."""

    def __init__(self, library: str) -> None:
        self.loaded = ctypes.CDLL(library)

    def is_told(self) -> bool:
        """Whether the kernel has said that something changed."""
        count = self.loaded.turn(True)
        assert count >= 0
        return bool(count)

    def addresses(self) -> list[str]:
        """What it finds, asked twice."""
        found = [self._put(), self._put()]
        assert found[0] == found[1]
        return found[0]

    def _put(self) -> list[str]:
        buffer = ctypes.create_string_buffer(4096)
        writer = Writer(ctypes.addressof(buffer), 0, len(buffer), False)
        self.loaded.addresses_put(ctypes.byref(writer), 6)
        data, texts = buffer.raw[: writer.length], []
        while data:
            assert data[0] == 6
            end = 5 + int.from_bytes(data[1:5], "little")
            texts.append(data[5:end].decode())
            data = data[end:]
        return texts


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("ip") or subprocess.run(["unshare", "--net", "true"], check=False).returncode != 0:
        pytest.skip("no network namespace can be made here")
    directory = tmp_path_factory.mktemp("addresses")
    return shared_library(
        directory, "identity/addresses.c", "loop/netlink.c", "link/wire.c", with_events(directory)
    )


def _there(library: Path, *scripts: str, ask: str = _ASK, changes: Sequence[str] = ()) -> list[Any]:
    words = [sys.executable, "-c", ask, str(library), *changes]
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


def test_what_comes_and_goes_is_looked_up_when_the_kernel_tells(library: Path) -> None:
    changes = (
        "addr add 10.1.2.9/24 dev two",
        "addr del 10.1.2.9/24 dev two",
        "addr add 2001:db8::8/64 dev two nodad",
        "link del one",
    )
    before, more, less, six, gone = _there(library, _SET_UP, ask=_ASK_AGAIN, changes=changes)
    assert set(more) - set(before) == {"10.1.2.9"}
    assert less == before
    assert set(six) - set(before) == {"2001:db8::8"}
    assert gone == []


def test_more_changes_than_a_socket_holds_are_noticed(library: Path) -> None:
    """What the kernel says is lost then, and that it was is what one hears."""
    flood = "-batch " + str(library.with_name("many"))
    library.with_name("many").write_text(
        "".join(f"addr add 10.3.{n // 250}.{n % 250}/32 dev two\n" for n in range(3000))
    )
    before, after = _there(library, _SET_UP, ask=_ASK_AGAIN, changes=[flood])
    assert (len(before), len(after)) == (4, 16)
