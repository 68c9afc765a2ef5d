/* The machine under the probe: memory, clock, interrupts, the way out. */
#ifndef PROBE_MACHINE_H
#define PROBE_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES 4096u
#define GIB (1ull << 30)
#define MACHINE_INTERRUPTS 16u /* those of the legacy controllers */
#define MAPPED_END (64 * GIB) /* RAM beyond isn't used */
#define HOT __attribute__((section(".bss.hot")))
#define BUFFERS __attribute__((section(".bss.buffers")))

struct range {
    uint64_t start, end;
};

/* What the VMM says: RAM, and the kernel's command line. To be called first; maps all RAM. */
void machine_init(const void *boot_params);
const char *machine_command_line(void);

/* Maps a device's registers. */
void machine_map(uint64_t start, uint64_t end);

/* Whether all of it is RAM, and, to be written, none of it the probe's own. */
bool machine_is_ram(uint64_t start, uint64_t bytes, bool writable);

uint64_t machine_cycles(void);
uint64_t machine_monotonic_ns(void);

/* Waits for an interrupt. One that came since the last call counts. */
void machine_idle(void);
/* Writes to the serial port. Each octet costs an exit. */
void machine_say(const char *text);
/* Ends the VMM: Firecracker has no power switch, and a reset is its guest's end. */
_Noreturn void machine_reset(void);

#endif
