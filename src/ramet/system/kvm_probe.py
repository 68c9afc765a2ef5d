"""A separate program that finds out whether `/dev/kvm` runs what a Linux kernel runs in ring 0.

It builds a VM of 36 pages, enters it in 64-bit mode at -2 GiB (where Linux lives) and runs short pieces of
machine code, each with instructions that a kernel can't do without. It also times a loop in the guest and the
same bytes on the host. A line of JSON on standard output has the result: `{"status": …, "detail": …}`, as in
`ramet.system.kvm.KvmVerdict`.

It is one file and needs only the standard library: so it starts in milliseconds (`python -I -S kvm_probe.py`)
and can be copied to a machine on which nothing is installed. No piece of code gets more than `CHECK_LIMIT_S`.

Sources: Linux Documentation/virt/kvm/api.rst and <linux/kvm.h> (ioctls, struct kvm_run; the layouts are
x86-64's), Intel SDM volume 3A, chapters 3 to 6 (descriptors, paging, interrupts), volume 1, chapter 13.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import struct
import time
from typing import Literal, NamedTuple

DEVICE = "/dev/kvm"
KvmStatus = Literal["runs_linux", "bare_metal_only", "absent", "no_permission", "broken", "unknown"]

# <linux/kvm.h>, with the _IOC encoding worked out.
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID = 0xC008AE05
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_TSS_ADDR = 0xAE47
KVM_RUN = 0xAE80
KVM_GET_REGS = 0x8090AE81
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_SET_CPUID2 = 0x4008AE90

EXIT_HLT, EXIT_SHUTDOWN, EXIT_FAIL_ENTRY, EXIT_INTERNAL_ERROR = 5, 8, 9, 17
EXIT_NAMES = {2: "IO", 5: "HLT", 6: "MMIO", 8: "SHUTDOWN", 9: "FAIL_ENTRY", 17: "INTERNAL_ERROR"}
SUBERRORS = {1: "emulation", 2: "simultaneous exceptions", 3: "event delivery", 4: "unexpected exit reason"}

# Guest-physical layout. The same page tables show it at 0 and at -2 GiB.
HIGH = 0xFFFFFFFF_80000000
PML4, PDPT, PD, PT, GDT, IDT, TSS, DATA, STACK_TOP, XSAVE_AREA = (
    *(0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000, 0x8000),
    *(0xA000, 0xA000),
)
TRAPS, BREAKPOINT, PAGE_FAULT, SYSCALL_ENTRY = 0xC000, 0xC200, 0xC240, 0xC280
KERNEL_CODE, USER_CODE, NOT_PRESENT, RAM_BYTES = 0x10000, 0x11000, 0x20000, 0x24000

OK = 0x600D  # what a piece of code leaves in RAX when everything came out as it should
TRAPPED = 0xBAD00000  # … and its mark, with the vector, after an unexpected exception

CpuidBits = dict[tuple[int, int, str], int]  # register values by (leaf, subleaf, register)
Assembly = tuple[tuple[str, str], ...]  # (bytes in hex, the same instruction for people and for GNU as)


def machine_code(assembly: Assembly) -> bytes:
    """Return the bytes of a piece of code."""
    return b"".join(bytes.fromhex(code) for code, _ in assembly)


class Check(NamedTuple):
    """A need of Linux, if the CPUID bit `cpuid`, as (leaf, subleaf, register, bit), is set or None."""

    name: str
    code: Assembly
    cpuid: tuple[int, int, str, int] | None = None


_ENABLE_XSAVE: Assembly = (
    ("0f 20 e0", "mov rax, cr4"),
    ("0d 00 00 04 00", "or eax, 0x40000"),  # CR4.OSXSAVE
    ("0f 22 e0", "mov cr4, rax"),
    ("31 c9", "xor ecx, ecx"),
    ("31 d2", "xor edx, edx"),
    ("b8 03 00 00 00", "mov eax, 3"),  # XCR0: x87 and SSE
    ("0f 01 d1", "xsetbv"),
    ("48 c7 c7 00 a0 00 80", "mov rdi, 0xffffffff8000a000"),  # XSAVE_AREA
)
BASELINE = Check("64-bit code", (("b8 0d 60 00 00", "mov eax, 0x600d"), ("f4", "hlt")))
CHECKS = (
    Check(
        "cmpxchg16b",
        (
            ("48 c7 c7 00 80 00 80", "mov rdi, 0xffffffff80008000"),  # DATA
            ("31 c0", "xor eax, eax"),
            ("31 d2", "xor edx, edx"),
            ("bb 0d 60 00 00", "mov ebx, 0x600d"),
            ("31 c9", "xor ecx, ecx"),
            ("f0 48 0f c7 0f", "lock cmpxchg16b xmmword ptr [rdi]"),
            ("48 8b 07", "mov rax, qword ptr [rdi]"),
            ("f4", "hlt"),
        ),
        (1, 0, "ecx", 13),
    ),
    Check("int3", (("31 c0", "xor eax, eax"), ("cc", "int3"), ("f4", "hlt"))),
    Check(
        "page fault",
        (
            ("c7 04 25 00 80 00 80 0d 60 00 00", "mov dword ptr [0xffffffff80008000], 0x600d"),
            ("8b 04 25 00 00 02 80", "mov eax, dword ptr [0xffffffff80020000]"),  # NOT_PRESENT
            ("0f 20 d9", "mov rcx, cr3"),
            ("0f 22 d9", "mov cr3, rcx"),
            ("8b 04 25 00 00 02 80", "mov eax, dword ptr [0xffffffff80020000]"),
            ("f4", "hlt"),
        ),
    ),
    Check(
        "wrmsr and swapgs",
        (
            ("b9 80 00 00 c0", "mov ecx, 0xc0000080"),  # EFER, written back unchanged
            ("0f 32", "rdmsr"),
            ("0f 30", "wrmsr"),
            ("b9 02 01 00 c0", "mov ecx, 0xc0000102"),  # KERNEL_GS_BASE := DATA
            ("b8 00 80 00 80", "mov eax, 0x80008000"),
            ("ba ff ff ff ff", "mov edx, 0xffffffff"),
            ("0f 30", "wrmsr"),
            ("0f 01 f8", "swapgs"),
            ("65 c7 04 25 00 00 00 00 0d 60 00 00", "mov dword ptr gs:[0], 0x600d"),
            ("8b 04 25 00 80 00 80", "mov eax, dword ptr [0xffffffff80008000]"),
            ("f4", "hlt"),
        ),
    ),
    Check(
        "syscall and sysret",
        (
            ("b9 81 00 00 c0", "mov ecx, 0xc0000081"),  # STAR: kernel 0x08, user 0x1b
            ("31 c0", "xor eax, eax"),
            ("ba 08 00 1b 00", "mov edx, 0x1b0008"),
            ("0f 30", "wrmsr"),
            ("b9 82 00 00 c0", "mov ecx, 0xc0000082"),  # LSTAR := SYSCALL_ENTRY
            ("b8 80 c2 00 80", "mov eax, 0x8000c280"),
            ("ba ff ff ff ff", "mov edx, 0xffffffff"),
            ("0f 30", "wrmsr"),
            ("6a 23", "push 0x23"),  # SS, RSP, RFLAGS, CS, RIP of ring 3
            ("68 00 1f 01 00", "push 0x11f00"),
            ("6a 02", "push 2"),
            ("6a 2b", "push 0x2b"),
            ("68 00 10 01 00", "push 0x11000"),  # USER_CODE
            ("48 cf", "iretq"),
        ),
    ),
    Check(
        "xsave",
        (
            *_ENABLE_XSAVE,
            ("db e3", "fninit"),
            ("48 0f ae 27", "xsave64 [rdi]"),
            ("48 0f ae 2f", "xrstor64 [rdi]"),
            ("0f b7 07", "movzx eax, word ptr [rdi]"),  # FCW, 0x37f after FNINIT
            ("35 72 63 00 00", "xor eax, 0x6372"),
            ("f4", "hlt"),
        ),
        (1, 0, "ecx", 26),
    ),
    Check(
        "xsaves",
        (
            *_ENABLE_XSAVE,
            ("48 0f c7 2f", "xsaves64 [rdi]"),
            ("48 0f c7 1f", "xrstors64 [rdi]"),
            ("48 8b 87 08 02 00 00", "mov rax, qword ptr [rdi+0x208]"),  # XCOMP_BV: bit 63, compacted
            ("48 c1 e8 3f", "shr rax, 63"),
            ("05 0c 60 00 00", "add eax, 0x600c"),
            ("f4", "hlt"),
        ),
        (0xD, 1, "eax", 3),
    ),
)
# What stands elsewhere in guest memory, by address.
FIXTURES: dict[int, Assembly] = {
    BREAKPOINT: (("b8 0d 60 00 00", "mov eax, 0x600d"), ("48 cf", "iretq")),
    PAGE_FAULT: (
        ("0f 20 d3", "mov rbx, cr2"),
        ("48 81 fb 00 00 02 80", "cmp rbx, 0xffffffff80020000"),  # NOT_PRESENT
        ("74 06", "je .+8"),
        ("b8 0e 00 d0 ba", "mov eax, 0xbad0000e"),  # TRAPPED, vector 14
        ("f4", "hlt"),
        ("c7 04 25 00 41 00 80 03 80 00 00", "mov dword ptr [0xffffffff80004100], 0x8003"),  # its PTE := DATA
        ("0f 01 3b", "invlpg [rbx]"),
        ("48 83 c4 08", "add rsp, 8"),
        ("48 cf", "iretq"),
    ),
    SYSCALL_ENTRY: (
        ("ff 04 25 00 80 00 80", "inc dword ptr [0xffffffff80008000]"),
        ("83 3c 25 00 80 00 80 02", "cmp dword ptr [0xffffffff80008000], 2"),
        ("74 03", "je .+5"),
        ("48 0f 07", "sysretq"),
        ("b8 0d 60 00 00", "mov eax, 0x600d"),
        ("f4", "hlt"),
    ),
    USER_CODE: (("0f 05", "syscall"), ("0f 05", "syscall"), ("0f 0b", "ud2")),
}
LOOP: Assembly = (("ff c9", "dec ecx"), ("75 fc", "jne .-2"))  # RCX times two instructions
TIMED = Check("a loop", (*LOOP, *BASELINE.code))

# Interpreting one instruction costs hundreds or thousands of the host's own. A processor that runs the guest,
# real or itself emulated (nested virtualization under TCG), runs this loop as it runs the host's: ratio 1.
# The limit lies between, with room for noise on both sides. The long loop is for a figure worth printing;
# an interpreter never gets to it.
INTERPRETED_RATIO, INTERPRETED_S = 100.0, 0.002
SHORT_LOOPS, LONG_LOOPS, TRIES = 10_000, 2_000_000, 3

CHECK_LIMIT_S = 0.5  # for one piece of code, all of which take microseconds


class ProbeError(Exception):
    """The probe couldn't be carried out. Carries the status that this means."""

    def __init__(self, status: KvmStatus, detail: str) -> None:
        super().__init__(detail)
        self.status: KvmStatus = status


HUNG = "KVM_RUN never comes back"


class HungError(Exception):
    """KVM_RUN didn't come back. The signal that raises this also takes the vCPU out of the guest."""


def _segment(selector: int, *, kind: int, db: int = 0, s: int = 1, long: int = 0) -> bytes:
    """Return a `struct kvm_segment`, present, DPL 0: flat, or (`s` = 0) the TSS."""
    base, limit = (0, 0xFFFFFFFF) if s else (HIGH + TSS, 0x67)
    return struct.pack("<QIH10B", base, limit, selector, kind, 1, 0, db, s, long, s, 0, 0, 0)


def _ram() -> bytes:
    """Guest memory as every check finds it: page tables, descriptors, handlers; data and stack are zeros."""
    ram = bytearray(RAM_BYTES)

    def quads(address: int, *values: int) -> None:
        struct.pack_into(f"<{len(values)}Q", ram, address, *values)

    present_writable_user = 7
    for table, next_table, low, high in ((PML4, PDPT, 0, 511), (PDPT, PD, 0, 510), (PD, PT, 0, 0)):
        for index in (low, high):
            quads(table + 8 * index, next_table | present_writable_user)
    for page in range(0, RAM_BYTES, 0x1000):
        if page != NOT_PRESENT:
            quads(PT + 8 * (page >> 12), page | (7 if page == USER_CODE else 3))
    # Null, kernel code, data; in SYSRET's order 32-bit code, data and code of ring 3; the TSS.
    quads(GDT, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    quads(GDT + 0x18, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
    quads(GDT + 0x30, 0x80008B0000000067 | TSS << 16, HIGH >> 32)
    struct.pack_into("<Q", ram, TSS + 4, HIGH + STACK_TOP)  # RSP0
    for vector in range(32):
        trap = TRAPS + 8 * vector
        ram[trap : trap + 6] = b"\xb8" + struct.pack("<I", TRAPPED | vector) + b"\xf4"  # mov eax, …; hlt
        target = HIGH + {3: BREAKPOINT, 14: PAGE_FAULT}.get(vector, trap)
        gate = (target & 0xFFFF, 0x08, 0, 0x8E, target >> 16 & 0xFFFF, target >> 32, 0)
        struct.pack_into("<HHBBHII", ram, IDT + 16 * vector, *gate)
    for address, assembly in FIXTURES.items():
        code = machine_code(assembly)
        ram[address : address + len(code)] = code
    return bytes(ram)


class Machine:
    """A VM with one vCPU. After a failed `run` use a new one: what KVM keeps is undefined."""

    def __init__(self, kvm: int, cpuid: bytearray) -> None:
        self._files: list[int] = []
        self._image = _ram()
        self._ram = mmap.mmap(-1, RAM_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            vm = self._open(kvm, KVM_CREATE_VM)
            try:
                fcntl.ioctl(vm, KVM_SET_TSS_ADDR, 0x7FFB_D000)
            except OSError:
                pass  # only some Intel processors want it; others may refuse it
            address = ctypes.addressof(ctypes.c_char.from_buffer(self._ram))
            fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, RAM_BYTES, address))
            self._vcpu = self._open(vm, KVM_CREATE_VCPU)
            self._run = mmap.mmap(self._vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE), mmap.MAP_SHARED)
            fcntl.ioctl(self._vcpu, KVM_SET_CPUID2, cpuid)
            self._sregs = self._long_mode(fcntl.ioctl(self._vcpu, KVM_GET_SREGS, bytes(0x138)))
        except BaseException:
            self.close()
            raise

    def _open(self, file: int, request: int) -> int:
        self._files.append(fcntl.ioctl(file, request, 0))
        return self._files[-1]

    @staticmethod
    def _long_mode(reset: bytes) -> bytes:
        """Return the vCPU's `struct kvm_sregs` after reset, changed to 64-bit ring 0 with our tables."""
        code, data = _segment(0x08, kind=11, long=1), _segment(0x10, kind=3, db=1)
        segments = code + 5 * data + _segment(0x30, kind=11, s=0) + reset[168:192]  # the LDT stays unusable
        tables = struct.pack("<QH6xQH6x", HIGH + GDT, 0x3F, HIGH + IDT, 32 * 16 - 1)
        cr0 = 0x80050033  # PG AM WP NE ET MP PE
        cr4 = 0x6B0  # OSXMMEXCPT OSFXSR PGE PAE PSE
        efer = 0xD01  # NXE LMA LME SCE
        apic_base = struct.unpack_from("<Q", reset, 272)[0]
        return segments + tables + struct.pack("<7Q", cr0, 0, PML4, cr4, 0, efer, apic_base) + bytes(32)

    def run(self, check: Check, rcx: int = 0) -> str | None:
        """Run one piece of code in fresh memory. None when it came out right, else what happened instead."""
        self._ram[:] = self._image
        code = machine_code(check.code)
        self._ram[KERNEL_CODE : KERNEL_CODE + len(code)] = code
        fcntl.ioctl(self._vcpu, KVM_SET_SREGS, self._sregs)
        rsp, rip, rflags = HIGH + STACK_TOP, HIGH + KERNEL_CODE, 2
        registers = struct.pack("<18Q", 0, 0, rcx, *bytes(3), rsp, *bytes(9), rip, rflags)
        fcntl.ioctl(self._vcpu, KVM_SET_REGS, registers)
        started = time.perf_counter()
        try:
            signal.setitimer(signal.ITIMER_REAL, CHECK_LIMIT_S)
            fcntl.ioctl(self._vcpu, KVM_RUN, 0)
        except HungError:
            return HUNG
        except OSError as error:
            return f"KVM_RUN fails ({error.strerror})"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.run_s = time.perf_counter() - started
        (rax,) = struct.unpack_from("<Q", fcntl.ioctl(self._vcpu, KVM_GET_REGS, bytes(0x90)))
        reason, what = self._exit()
        if reason != EXIT_HLT:
            return what
        if rax == OK:
            return None
        return f"exception {rax & 0xFF}" if rax & ~0xFF == TRAPPED else f"a wrong result ({rax:#x})"

    def _exit(self) -> tuple[int, str]:
        """Return `kvm_run.exit_reason`, and words for it."""
        (reason,) = struct.unpack_from("<I", self._run, 8)
        name = f"KVM_EXIT_{EXIT_NAMES.get(reason, reason)}"
        if reason == EXIT_INTERNAL_ERROR:
            (suberror,) = struct.unpack_from("<I", self._run, 32)
            return reason, f"{name} (suberror {suberror}: {SUBERRORS.get(suberror, 'unknown')})"
        if reason == EXIT_FAIL_ENTRY:
            return reason, f"{name} (hardware reason {struct.unpack_from('<Q', self._run, 32)[0]:#x})"
        return reason, f"{name} (triple fault)" if reason == EXIT_SHUTDOWN else name

    def close(self) -> None:
        """Free the VM. A second call does nothing."""
        if hasattr(self, "_run"):
            self._run.close()
        while self._files:
            os.close(self._files.pop())


def _supported_cpuid(kvm: int) -> tuple[bytearray, CpuidBits]:
    """Return KVM_GET_SUPPORTED_CPUID unchanged, for the vCPU, and by (leaf, subleaf, register)."""
    entries = 256
    table = bytearray(8 + 40 * entries)
    struct.pack_into("<I", table, 0, entries)
    fcntl.ioctl(kvm, KVM_GET_SUPPORTED_CPUID, table)
    values: CpuidBits = {}
    for number in range(struct.unpack_from("<I", table)[0]):
        leaf, subleaf, _flags, *registers = struct.unpack_from("<7I", table, 8 + 40 * number)
        for name, value in zip(("eax", "ebx", "ecx", "edx"), registers, strict=True):
            values[leaf, subleaf, name] = value
    return table, values


def _time_in_guest(machine: Machine, loops: int) -> float:
    """Return the seconds in KVM_RUN for `loops` turns of the loop.

    It is the best of a few, because others use the machine.
    """
    best = float("inf")
    for _ in range(TRIES):
        if trouble := machine.run(TIMED, loops):
            raise ProbeError("bare_metal_only", f"a plain loop {trouble}")
        best = min(best, machine.run_s)
    return best


def _time_on_host(loops: int) -> float | None:
    """Time the same bytes, called as a function; None if the host allows no executable anonymous memory."""
    code = b"\x89\xf9" + machine_code(LOOP) + b"\xc3"  # mov ecx, edi; …; ret
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page[: len(code)] = code
    function = ctypes.CFUNCTYPE(None, ctypes.c_uint32)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    best = float("inf")
    for _ in range(TRIES):
        started = time.perf_counter()
        function(loops)
        best = min(best, time.perf_counter() - started)
    return best


def slowness(machine: Machine) -> float:
    """Return how many times longer the loop takes in the guest than on the host, without entry and exit."""
    entry_s = _time_in_guest(machine, 1)
    for loops in (SHORT_LOOPS, LONG_LOOPS):
        guest_s = _time_in_guest(machine, loops) - entry_s
        # Without the host's own figure: a processor manages a turn in 2 ns, if it isn't emulated itself.
        host_s = _time_on_host(loops) or loops * 2e-9
        if guest_s > max(INTERPRETED_S, INTERPRETED_RATIO * host_s):
            break
    return guest_s / host_s


def open_device(path: str = DEVICE) -> int:
    """Open `/dev/kvm`. Raises `ProbeError`: absent, no_permission or broken."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        status: KvmStatus = "broken"
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            status = "absent"
        elif error.errno in (errno.EACCES, errno.EPERM):
            status = "no_permission"
        raise ProbeError(status, f"{path}: {error.strerror}") from None


def _failures(kvm: int, cpuid: bytearray, bits: CpuidBits) -> tuple[dict[str, list[str]], float]:
    """Run the checks. Returns the failures, each with the checks that failed so, and the slowness."""
    failures: dict[str, list[str]] = {}
    machine = Machine(kvm, cpuid)
    try:
        if trouble := machine.run(BASELINE):
            raise ProbeError("broken", f"{trouble} at the first instruction")
        slower = slowness(machine)
        for check in CHECKS:
            if check.cpuid is not None and not bits.get(check.cpuid[:3], 0) >> check.cpuid[3] & 1:
                continue
            if trouble := machine.run(check):
                failures.setdefault(trouble, []).append(check.name)
                if trouble == HUNG:
                    break  # the rest might take as long, and the verdict is clear
                machine.close()
                machine = Machine(kvm, cpuid)
    finally:
        machine.close()
    return failures, slower


def probe() -> tuple[KvmStatus, str]:
    """Return the status and a sentence with the reason. Raises `ProbeError` when the probe can't be made."""
    kvm = open_device()
    try:
        if (machine := os.uname().machine) != "x86_64":
            raise ProbeError("unknown", f"{DEVICE} opens, but this check knows no {machine} code")
        if (version := fcntl.ioctl(kvm, KVM_GET_API_VERSION)) != 12:
            raise ProbeError("broken", f"KVM speaks API version {version}, not 12")
        failures, slower = _failures(kvm, *_supported_cpuid(kvm))
    except OSError as error:
        raise ProbeError("broken", f"KVM can't make a VM: {error.strerror}") from None
    finally:
        os.close(kvm)
    reasons = [f"{trouble} at {', '.join(names)}" for trouble, names in failures.items()]
    if slower > INTERPRETED_RATIO:
        reasons.append(f"ring-0 code is interpreted, {slower:.0f} times slower than the host's own")
    if reasons:
        return "bare_metal_only", "; ".join(reasons)
    return "runs_linux", f"ring-0 code runs as Linux needs it, in {slower:.1f} times the host's own time"


def _hung(_signal: int, _frame: object) -> None:
    raise HungError


def main() -> None:
    """Print the verdict."""
    signal.signal(signal.SIGALRM, _hung)
    try:
        status, detail = probe()
    except ProbeError as error:
        status, detail = error.status, str(error)
    print(json.dumps({"status": status, "detail": detail}))


if __name__ == "__main__":
    main()
