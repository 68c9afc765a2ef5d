#include "machine.h"

#include <string.h>

#define SERIAL_PORT 0x3f8u
#define RANGES_MAX 16u
#define E820_RAM 1u
#define KVM_CLOCK_MSR 0x4b564d01u
#define PIT_HZ 1193182u
#define LARGE_PAGE 0xe7u /* present, writable, for ring 3, accessed, dirty, 2 MiB: Intel SDM 3A, 4.5 */
#define DIRECTORY 0x27u

struct e820_entry { /* Linux Documentation/arch/x86/zero-page.rst */
    uint64_t start, bytes;
    uint32_t type;
} __attribute__((packed));

extern uint64_t page_pointers[512];
extern char probe_entry[], image_end[];
static uint64_t directories[MAPPED_END / GIB][512] __attribute__((aligned(4096), section(".bss.page_directories")));

static struct range ram[RANGES_MAX];
static unsigned ram_count;
static const char *command_line;
static uint64_t ns_per_cycle; /* 40 bits of fraction */
static uint64_t last_ns HOT, behind_ns HOT;

/* --- in ring 0; start.S calls these ------------------------------------------------------------------------ */

static inline void outb(uint16_t port, uint8_t octet) { __asm__ volatile("outb %0, %1" : : "a"(octet), "Nd"(port)); }

static inline uint8_t inb(uint16_t port) {
    uint8_t octet;
    __asm__ volatile("inb %1, %0" : "=a"(octet) : "Nd"(port));
    return octet;
}

static inline void wrmsr(uint32_t number, uint64_t value) {
    __asm__ volatile("wrmsr" : : "c"(number), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

struct cpuid {
    uint32_t a, b, c, d;
};

static struct cpuid cpuid(uint32_t leaf) {
    struct cpuid out;
    __asm__ volatile("cpuid" : "=a"(out.a), "=b"(out.b), "=c"(out.c), "=d"(out.d) : "a"(leaf), "c"(0));
    return out;
}

void machine_say_in_ring0(const char *text);
void machine_say_in_ring0(const char *text) {
    while (*text != '\0')
        outb(SERIAL_PORT, (uint8_t)*text++);
}

static void say_number(uint64_t number) {
    for (int shift = 60; shift >= 0; shift -= 4)
        if (shift == 0 || number >> shift != 0)
            outb(SERIAL_PORT, (uint8_t) "0123456789abcdef"[number >> shift & 15]);
}

/* Interrupts of the legacy controllers as vectors 32 to 47. They end by themselves (AEOI) and are edges: nothing has
 * to be acknowledged, neither here nor in a device. */
static void start_interrupts(void) {
    static const struct {
        uint16_t port;
        uint8_t octet;
    } words[] = {
        {0x20, 0x11}, {0x21, 32}, {0x21, 4}, {0x21, 3}, {0x21, 0x01}, /* all but the PIT */
        {0xa0, 0x11}, {0xa1, 40}, {0xa1, 2}, {0xa1, 3}, {0xa1, 0x00},
    };
    for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++)
        outb(words[i].port, words[i].octet);
}

/* kvm-clock's scale, without the clock: Linux Documentation/virt/kvm/x86/msr.rst. 0 when there is none. */
static uint64_t scale_of_kvm(void) {
    static volatile struct {
        uint32_t version, padding;
        uint64_t cycles, ns;
        uint32_t scale;
        int8_t shift;
        uint8_t flags, more[2];
    } clock __attribute__((aligned(32)));
    struct cpuid vendor = cpuid(0x40000000);
    if (vendor.b != 0x4b4d564b || vendor.c != 0x564b4d56 || !(cpuid(0x40000001).a & 1u << 3)) /* "KVMKVMKVM" */
        return 0;
    wrmsr(KVM_CLOCK_MSR, (uint64_t)(uintptr_t)&clock | 1);
    int shift = clock.shift + 8;
    uint64_t scale = shift >= 0 ? (uint64_t)clock.scale << shift : (uint64_t)clock.scale >> -shift;
    wrmsr(KVM_CLOCK_MSR, 0); /* or KVM would write to this page in every fork */
    return scale;
}

static uint64_t scale_of_hz(uint64_t hz) { return hz >= 1000000 ? (1000000000ull << 34) / (hz >> 6) : 0; }

/* Counts cycles during 10 ms of the PIT's channel 2. */
static uint64_t scale_of_pit(void) {
    uint32_t ticks = PIT_HZ / 100;
    outb(0x61, (uint8_t)((inb(0x61) & ~2u) | 1u));
    outb(0x43, 0xb0);
    outb(0x42, (uint8_t)ticks);
    outb(0x42, (uint8_t)(ticks >> 8));
    uint64_t start = machine_cycles();
    while (!(inb(0x61) & 0x20))
        ;
    return scale_of_hz((machine_cycles() - start) * 100);
}

void machine_boot(void);
void machine_boot(void) {
    start_interrupts();
    if (cpuid(0).a >= 0x15) {
        struct cpuid rate = cpuid(0x15); /* Intel SDM 3A, 19.7.3 */
        if (rate.a != 0 && rate.b != 0 && rate.c != 0)
            ns_per_cycle = scale_of_hz((uint64_t)rate.c * rate.b / rate.a);
    }
    if (ns_per_cycle == 0)
        ns_per_cycle = scale_of_kvm();
    if (ns_per_cycle == 0)
        ns_per_cycle = scale_of_pit();
}

_Noreturn void machine_reset_in_ring0(void);
_Noreturn void machine_reset_in_ring0(void) {
    outb(0x64, 0xfe); /* the keyboard controller's reset line, which ends Firecracker */
    for (;;)
        __asm__ volatile("cli; hlt");
}

_Noreturn void machine_panic(uint64_t vector, uint64_t at, uint64_t address);
_Noreturn void machine_panic(uint64_t vector, uint64_t at, uint64_t address) {
    machine_say_in_ring0("probe: exception ");
    say_number(vector);
    machine_say_in_ring0(" at ");
    say_number(at);
    machine_say_in_ring0(", address ");
    say_number(address);
    machine_say_in_ring0("\n");
    machine_reset_in_ring0();
}

/* --- in ring 3 ------------------------------------------------------------------------------------------- */

void machine_map(uint64_t start, uint64_t end) {
    for (uint64_t gib = start / GIB; gib * GIB < end && gib < MAPPED_END / GIB; gib++) {
        if (page_pointers[gib] != 0)
            continue;
        for (uint64_t i = 0; i < 512; i++)
            directories[gib][i] = gib * GIB + i * (2u << 20) + LARGE_PAGE;
        page_pointers[gib] = (uint64_t)(uintptr_t)directories[gib] + DIRECTORY;
    }
}

void machine_init(const void *boot_params) {
    const uint8_t *page = boot_params;
    uint32_t at;
    memcpy(&at, page + 0x228, sizeof at); /* cmd_line_ptr */
    command_line = (const char *)(uintptr_t)at;
    unsigned count = page[0x1e8]; /* e820_entries; the table follows at 0x2d0 */
    for (unsigned i = 0; i < count && ram_count < RANGES_MAX; i++) {
        struct e820_entry entry;
        memcpy(&entry, page + 0x2d0 + i * sizeof entry, sizeof entry);
        uint64_t end = entry.start + entry.bytes < MAPPED_END ? entry.start + entry.bytes : MAPPED_END;
        if (entry.type != E820_RAM || entry.start >= end)
            continue;
        ram[ram_count++] = (struct range){entry.start, end};
        machine_map(entry.start, end);
    }
}

const char *machine_command_line(void) { return command_line; }

bool machine_is_ram(uint64_t start, uint64_t bytes, bool writable) {
    uint64_t own_start = (uintptr_t)probe_entry, own_end = (uintptr_t)image_end;
    if (writable && start < own_end && (start >= own_start || bytes > own_start - start))
        return false;
    for (unsigned i = 0; i < ram_count; i++)
        if (start >= ram[i].start && start <= ram[i].end && bytes <= ram[i].end - start)
            return true;
    return false;
}

uint64_t machine_cycles(void) {
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

uint64_t machine_monotonic_ns(void) {
    uint64_t now = (uint64_t)((unsigned __int128)machine_cycles() * ns_per_cycle >> 40) + behind_ns;
    if (now < last_ns) { /* restored on a machine that has run for a shorter time */
        behind_ns += last_ns - now;
        now = last_ns;
    }
    last_ns = now;
    return now;
}
