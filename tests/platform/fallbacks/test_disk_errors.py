"""The host's disk is full under a guest's write: the guest is paused, says so everywhere, and goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ramet.units import MIB
from tests.platform.fallbacks.conftest import SmallHome
from tests.support.shell import wait_until

pytestmark = pytest.mark.vm

_WRITTEN_MIB = 16
_ROOM_BYTES = 5 * MIB
_FILL = (
    f"head -c {_WRITTEN_MIB * MIB} /dev/urandom > /tmp/f; md5sum < /tmp/f;"
    " dd if=/tmp/f of=/dev/vda bs=1M conv=fsync 2>/dev/null; echo $?; rm /tmp/f;"
    f" echo 3 > /proc/sys/vm/drop_caches; head -c {_WRITTEN_MIB * MIB} /dev/vda | md5sum"
)


@pytest.fixture
def written(on_ext4: SmallHome) -> Iterator[str]:
    """A running guest with a data disk larger than there is room for."""
    on_ext4.shell("run", "-d", "--name", "writer", "--disk", "256M", "--memory", "256M", "builtin")
    try:
        yield "writer"
    finally:
        on_ext4.shell("rm", "-f", "writer")


def shown(home: SmallHome, name: str) -> tuple[str, str]:
    """Its state and reason, as `ps` has them."""
    (found,) = (instance for instance in home.shell.json("ps", "--json") if instance["name"] == name)
    return found["state"], found["reason"] or ""


@pytest.mark.deep
def test_a_full_disk_pauses_the_guest_which_then_goes_on(on_ext4: SmallHome, written: str) -> None:
    shell = on_ext4.shell
    output: list[bytes] = []
    with on_ext4.left(_ROOM_BYTES):
        command = shell.start("exec", written, "sh", "-c", _FILL)
        reader = threading.Thread(target=lambda: output.append(command.communicate(timeout=170)[0]))
        reader.start()
        wait_until(lambda: shown(on_ext4, written)[0] == "paused", 90)
        _, reason = shown(on_ext4, written)
        assert reason.startswith("io-error: the host refused a write to the disk `disk`"), reason
        assert f"`ramet resume {written}`" in reason
        inspected = shell.json("inspect", written, "--json")
        assert inspected["vmm_status"] == "io-error"
        assert "`disk` (No space left on device)" in inspected["reason"]
        # Errors say the same, and nothing is killed or lost by asking.
        refused = shell("exec", written, "true", code=125).stderr.decode()
        assert "io-error" in refused
        assert "ramet resume" in refused
        for words in (("resume", written), ("stop", "--timeout", "5", written)):
            text = shell(*words, code=4).stderr.decode()
            assert "io-error" in text, words
            assert "free some space" in text, words
            assert shown(on_ext4, written)[0] == "paused", words
        on_ext4.witness()
    shell("resume", written)
    assert shown(on_ext4, written) == ("running", "")
    reader.join(timeout=170)
    sum_written, status, sum_read = output[0].split(b"\n")[:3]
    assert status == b"0", "the guest's write was done in the end"
    assert sum_written == sum_read
    shell("stop", written)
    assert (shell.json("inspect", written, "--json")["reason"] or "") == ""


def test_a_fork_of_a_paused_one_and_what_is_given_up(on_ext4: SmallHome, written: str) -> None:
    """`stop --timeout 0` ends it, and says what that costs."""
    shell = on_ext4.shell
    with on_ext4.left(_ROOM_BYTES):
        shell("exec", "-d", written, "sh", "-c", _FILL)
        wait_until(lambda: shown(on_ext4, written)[0] == "paused", 90)
        shell("stop", "--timeout", "0", written)
        reason = shell.json("inspect", written, "--json")["reason"]
        assert "lost" in reason, reason
