"""The verdict whether KVM runs Linux here, which an open `/dev/kvm` doesn't prove.

A paravirtual nested KVM opens, answers and runs small bare-metal guests, but interprets what a guest does in
ring 0 and gives up at the first instruction that its interpreter lacks: a Linux guest dies after tens of
seconds. `kvm_probe` tries those instructions in about a tenth of a second, in a separate process, so that a
hung vCPU can be killed. The verdict holds until the next boot and is kept in a file.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from ramet.system import kvm_probe, outside, process_ref, publishing
from ramet.system.kvm_kind import UNKNOWN, kvm_kind
from ramet.system.kvm_probe import KvmStatus, ProbeError

_PROBE = Path(kvm_probe.__file__)
# Isolated and without `site`: the probe needs the standard library alone, and the start is most of its time.
_COMMAND = (sys.executable, "-I", "-S", str(_PROBE))


class KvmVerdict(msgspec.Struct, frozen=True):
    """The guests that KVM can run here. `detail` says in a sentence how that is known.

    `runs_linux`: use it. `bare_metal_only`: small self-made guests run, a stock kernel doesn't. `absent`: no
    `/dev/kvm`. `no_permission`: it is there and not for this user. `broken`: it opens, but makes no VM, or
    doesn't answer. `unknown`: it opens on an architecture for which there is no check (all but x86-64); ramet
    treats that as a no. `duration_ms` is the time of the check, when it was made; `kind` is `kvm_kind`'s.
    """

    status: KvmStatus
    detail: str
    duration_ms: float
    kind: str = UNKNOWN


class _Answer(msgspec.Struct, frozen=True):
    """The probe's output."""

    status: KvmStatus
    detail: str


class _Cached(msgspec.Struct, frozen=True):
    """A verdict, and that under which it was found."""

    key: str
    verdict: KvmVerdict


async def kvm_verdict(
    cache_dir: Path,
    *,
    refresh: bool = False,
    limit_s: float = 10.0,
    device: str = kvm_probe.DEVICE,
    command: Sequence[str] = _COMMAND,
) -> KvmVerdict:
    """Return the verdict on this machine's KVM, from `cache_dir` unless `refresh`.

    KVM's faults raise nothing.

    The probe takes 0.1 s, and a second or two on a machine that is itself emulated. It gives up a hung vCPU
    after half a second; `limit_s` is for everything else that can hang, and then the answer is `broken`.
    Verdicts that may change without a trace (no device, no permission, a conflicting VMM, a limit) aren't
    kept. A cache that can't be read or written costs only time.
    """
    started = time.monotonic()
    try:
        key = cache_key(device)
    except ProbeError as error:
        return KvmVerdict(error.status, str(error), _since(started), kvm_kind())
    cache = cache_dir / f"kvm-{os.geteuid()}.json"
    if not refresh and (kept := _read(cache, key)):
        return kept
    answer = await _ask(command, limit_s)
    verdict = KvmVerdict(answer.status, answer.detail, _since(started), kvm_kind())
    if verdict.status in ("runs_linux", "bare_metal_only"):
        _write(cache, _Cached(key, verdict))
    return verdict


def cache_key(device: str) -> str:
    """Return everything that a verdict depends on.

    Loading another KVM module makes a new node, which its inode shows; if the node is a container's own, the
    module's name shows it. Raises `ProbeError` as `kvm_probe.open_device`.
    """
    descriptor = kvm_probe.open_device(device)
    try:
        node = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    parts = (
        process_ref.boot_id(),
        os.uname().release,
        f"{node.st_dev}:{node.st_ino}:{node.st_rdev}:{node.st_mode:o}",
        os.geteuid(),
        kvm_kind(),
        zlib.crc32(_PROBE.read_bytes()),
    )
    return " ".join(map(str, parts))


async def _ask(command: Sequence[str], limit_s: float) -> _Answer:
    """Run the probe. It is dead and reaped when this returns or is cancelled."""
    try:
        done = await outside.run_async(command, limit_s=limit_s)
    except TimeoutError:
        return _Answer("broken", f"the check didn't end within {limit_s:g} s")
    except OSError as error:
        return _Answer("broken", f"the check can't be started: {error}")
    try:
        return msgspec.json.decode(done.stdout, type=_Answer)
    except msgspec.DecodeError:
        status = done.status
        how = f"by {signal.Signals(-status).name}" if status is not None and status < 0 else f"with {status}"
        last_words = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return _Answer("broken", f"the check ended {how} and without a verdict: {last_words or 'no message'}")


def _read(cache: Path, key: str) -> KvmVerdict | None:
    try:
        cached = msgspec.json.decode(cache.read_bytes(), type=_Cached)
    except (OSError, msgspec.DecodeError):
        return None
    return cached.verdict if cached.key == key else None


def _write(cache: Path, cached: _Cached) -> None:
    # Whole or not at all for readers; not synced, because a crash changes the boot id anyway.
    temporary = publishing.temporary_beside(cache)
    with suppress(OSError):  # the next process tries KVM again
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            temporary.write_bytes(msgspec.json.encode(cached))
            temporary.replace(cache)
        except OSError:
            temporary.unlink(missing_ok=True)


def _since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)
