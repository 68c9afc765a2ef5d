"""The verdict on this machine's KVM, and that nothing it does can hang or fool its caller."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from ramet.system import kvm_probe
from ramet.system.kvm import kvm_verdict
from ramet.system.kvm_probe import Assembly

PROBE = Path(kvm_probe.__file__)
FINAL = ("runs_linux", "bare_metal_only")
MAY_OPEN = os.access(kvm_probe.DEVICE, os.R_OK | os.W_OK)

pytestmark = pytest.mark.anyio
needs_kvm = pytest.mark.skipif(
    not MAY_OPEN or os.uname().machine != "x86_64", reason="no /dev/kvm for this user on x86-64"
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def is_paravirtual() -> bool:
    return Path("/sys/module/kvm_pvm").exists()


def printing(status: str, *, also: str = "") -> tuple[str, ...]:
    """A probe that says what it is told to."""
    answer = json.dumps({"status": status, "detail": "said so"})
    return (sys.executable, "-I", "-S", "-c", f"{also}\nprint({answer!r})")


NEVER = (sys.executable, "-I", "-S", "-c", "raise SystemExit('probed again')")


# --- the machine code

PIECES: dict[str, Assembly] = {
    **{check.name: check.code for check in (kvm_probe.BASELINE, kvm_probe.TIMED, *kvm_probe.CHECKS)},
    **{hex(address): code for address, code in kvm_probe.FIXTURES.items()},
}


@pytest.mark.skipif(not shutil.which("as") or not shutil.which("objcopy"), reason="no GNU binutils")
@pytest.mark.parametrize("name", PIECES)
def test_the_bytes_are_what_the_mnemonics_say(name: str, tmp_path: Path) -> None:
    source = "\n".join([".intel_syntax noprefix", *(mnemonic for _, mnemonic in PIECES[name]), ""])
    built, flat = tmp_path / "code.o", tmp_path / "code.bin"
    subprocess.run(["as", "--64", "-o", built], input=source.encode(), check=True, timeout=30)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", built, flat], check=True, timeout=30)
    assert flat.read_bytes().hex(" ") == kvm_probe.machine_code(PIECES[name]).hex(" ")


def test_a_piece_of_code_fits_in_its_place() -> None:
    page = 0x1000
    assert all(len(kvm_probe.machine_code(code)) <= page for code in PIECES.values())
    handlers = sorted(address for address in kvm_probe.FIXTURES if address != kvm_probe.USER_CODE)
    for here, there in pairwise(handlers):
        assert here + len(kvm_probe.machine_code(kvm_probe.FIXTURES[here])) <= there


# --- the verdict


@pytest.mark.timing
@needs_kvm
async def test_this_machine(tmp_path: Path) -> None:
    started = time.monotonic()
    verdict = await kvm_verdict(tmp_path)
    assert time.monotonic() - started < 5
    assert 0 < verdict.duration_ms < 5000
    assert verdict.status in FINAL
    if is_paravirtual():
        assert verdict.status == "bare_metal_only"
        assert "KVM_EXIT_INTERNAL_ERROR (suberror 1: emulation) at cmpxchg16b" in verdict.detail
        assert "interpreted" in verdict.detail


@needs_kvm
def test_a_guest_that_never_halts_is_given_up() -> None:
    endless = kvm_probe.Check("an endless loop", (("eb fe", "jmp ."),))
    script = f"""
import runpy, signal, sys, time
sys.argv = ["kvm_probe.py"]
probe = runpy.run_path({str(PROBE)!r})
signal.signal(signal.SIGALRM, probe["_hung"])
kvm = probe["open_device"]()
machine = probe["Machine"](kvm, probe["_supported_cpuid"](kvm)[0])
started = time.monotonic()
print(machine.run(probe["Check"]("", {endless.code!r})), time.monotonic() - started)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=30, stdout=subprocess.PIPE)
    what, _, seconds = done.stdout.decode().strip().rpartition(" ")
    assert what == kvm_probe.HUNG
    assert kvm_probe.CHECK_LIMIT_S <= float(seconds) < kvm_probe.CHECK_LIMIT_S + 5


async def test_without_a_device_it_is_absent_and_nothing_is_run(tmp_path: Path) -> None:
    verdict = await kvm_verdict(tmp_path, device=str(tmp_path / "kvm"), command=NEVER)
    assert verdict.status == "absent"
    assert "No such file" in verdict.detail
    assert list(tmp_path.iterdir()) == []


_AS_NOBODY = """
import sys
sys.path[:0] = {path!r}
import anyio, os, pathlib
from ramet.system import kvm, kvm_probe
anyio.run(anyio.sleep, 0)  # its backend is imported as long as the files can be read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
kvm_probe.main()
verdict = anyio.run(lambda: kvm.kvm_verdict(pathlib.Path({cache!r})))
print(verdict.status)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(not MAY_OPEN or bool(Path(kvm_probe.DEVICE).stat().st_mode & 0o006), reason="open to all")
def test_another_user_has_no_permission(tmp_path: Path) -> None:
    script = _AS_NOBODY.format(path=[str(PROBE.parents[2])], cache=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=60, stdout=subprocess.PIPE)
    printed, status = done.stdout.decode().splitlines()
    assert json.loads(printed) == {"status": "no_permission", "detail": "/dev/kvm: Permission denied"}
    assert status == "no_permission"


# --- the process and the cache
# A regular file stands for the device: what is tested is the caller, not KVM.


@pytest.fixture
def device(tmp_path: Path) -> str:
    path = tmp_path / "device"
    path.touch()
    return str(path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


async def test_a_verdict_is_kept_and_refreshed(cache: Path, device: str) -> None:
    first = await kvm_verdict(cache, device=device, command=printing("runs_linux"))
    assert (first.status, first.detail) == ("runs_linux", "said so")
    assert await kvm_verdict(cache, device=device, command=NEVER) == first
    again = await kvm_verdict(cache, device=device, command=printing("bare_metal_only"), refresh=True)
    assert again.status == "bare_metal_only"
    assert await kvm_verdict(cache, device=device, command=NEVER) == again
    assert [entry.name for entry in cache.iterdir()] == [f"kvm-{os.geteuid()}.json"]


async def test_a_verdict_belongs_to_its_device(cache: Path, device: str) -> None:
    await kvm_verdict(cache, device=device, command=printing("runs_linux"))
    Path(device).chmod(0o640)
    assert (
        await kvm_verdict(cache, device=device, command=printing("bare_metal_only"))
    ).status != "runs_linux"
    Path(device).rename(device + ".old")
    Path(device).touch(mode=0o640)
    assert (await kvm_verdict(cache, device=device, command=printing("runs_linux"))).status == "runs_linux"


async def test_a_verdict_belongs_to_its_boot(cache: Path, device: str) -> None:
    await kvm_verdict(cache, device=device, command=printing("runs_linux"))
    (kept,) = cache.iterdir()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept.write_text(kept.read_text().replace(boot, "another"))
    assert (
        await kvm_verdict(cache, device=device, command=printing("bare_metal_only"))
    ).status != "runs_linux"


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b'{"key": 1}', b"[]", b'{"key": "", "verdict": {}}'])
async def test_a_damaged_cache_is_ignored(cache: Path, device: str, damage: bytes) -> None:
    await kvm_verdict(cache, device=device, command=printing("runs_linux"))
    (kept,) = cache.iterdir()
    kept.write_bytes(damage)
    assert (
        await kvm_verdict(cache, device=device, command=printing("bare_metal_only"))
    ).status != "runs_linux"
    assert (await kvm_verdict(cache, device=device, command=NEVER)).status == "bare_metal_only"


async def test_a_cache_that_cant_be_written_costs_nothing_but_time(tmp_path: Path, device: str) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    for _ in range(2):
        verdict = await kvm_verdict(occupied, device=device, command=printing("runs_linux"))
        assert verdict.status == "runs_linux"


@pytest.mark.timing
async def test_a_hung_probe_is_killed_and_not_believed_later(
    tmp_path: Path, cache: Path, device: str
) -> None:
    pid_file = tmp_path / "pid"
    note = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    started = time.monotonic()
    verdict = await kvm_verdict(cache, device=device, command=printing("runs_linux", also=note), limit_s=1)
    assert time.monotonic() - started < 10
    assert verdict.status == "broken"
    assert "within 1 s" in verdict.detail
    assert not Path(f"/proc/{pid_file.read_text()}").exists()
    assert (await kvm_verdict(cache, device=device, command=printing("runs_linux"))).status == "runs_linux"


@pytest.mark.timing
async def test_cancelled_it_leaves_no_probe_behind(tmp_path: Path, cache: Path, device: str) -> None:
    pid_file = tmp_path / "pid"
    note = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with anyio.move_on_after(1):
        await kvm_verdict(cache, device=device, command=printing("runs_linux", also=note))
    assert not Path(f"/proc/{pid_file.read_text()}").exists()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ((sys.executable, "-I", "-S", "-c", "raise SystemExit('no such thing')"), "with 1 .* no such thing"),
        ((sys.executable, "-I", "-S", "-c", "import os; os.kill(os.getpid(), 9)"), "SIGKILL .* no message"),
        ((sys.executable, "-I", "-S", "-c", "print('{}')"), "with 0"),
        (printing("perfect"), "with 0"),
        (("/nowhere/python",), "can't be started"),
    ],
)
async def test_a_probe_that_fails_is_broken_with_its_last_words(
    cache: Path, device: str, command: tuple[str, ...], why: str
) -> None:
    verdict = await kvm_verdict(cache, device=device, command=command)
    assert verdict.status == "broken"
    assert re.search(why, verdict.detail)
    assert not cache.exists()
