"""The emulated host as an object: what its commands give back, and that nothing of it stays."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ramet.errors import UnavailableError
from tests.endurance.emulated_host.machine import EmulatedHost, HostDiedError

CRASH_LIMIT_S = 60
pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.timeout(2400)]


def test_a_command_gives_back_its_exit_code_and_all_it_said(emulated: EmulatedHost) -> None:
    done = emulated.run(["sh", "-c", 'echo "$WORD"; echo ümlaut >&2; exit 7'], 60, {"WORD": "out"})
    assert done == (7, "out\nümlaut\n")
    assert emulated.run(["sh", "-c", "kill -TERM $$"], 60).code == 128 + 15
    assert emulated.run(["no-such-program"], 60).code == 127
    size = 3_000_000
    assert len(emulated.run(["head", "-c", str(size), "/dev/zero"], 120, live=False).output) == size
    assert emulated.read("/no/such/file") == ""


def test_a_command_ends_with_its_time_and_so_do_its_children(emulated: EmulatedHost) -> None:
    started = time.monotonic()
    assert emulated.run(["sh", "-c", "sleep 1234 & sleep 1234"], 2).code == 124
    assert time.monotonic() - started < 600
    assert "sleep 1234" not in emulated.run(["ps", "-eo", "args"], 60, live=False).output


def test_a_host_that_goes_down_says_so_and_leaves_nothing() -> None:
    """Once more when it hangs instead."""
    said = crashed_hosts_words()
    assert "sysrq" in said or "sysrq" in crashed_hosts_words(), said


def crashed_hosts_words() -> str:
    """The error about a host that was crashed in the middle of a command. Nothing of the host is left."""
    try:
        with EmulatedHost() as host:
            directory, pid = host.directory, host.pid
            assert directory.exists()
            with pytest.raises(HostDiedError) as raised:
                host.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60"], CRASH_LIMIT_S)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()
    return str(raised.value)
