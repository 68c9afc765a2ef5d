#include "virtio.h"

#include <stddef.h>
#include <string.h>

#include "machine.h"

enum { /* registers, as indexes of 32-bit words */
    MAGIC = 0x00 / 4,
    VERSION = 0x04 / 4,
    KIND = 0x08 / 4,
    DEVICE_FEATURES = 0x10 / 4,
    DEVICE_FEATURES_SELECT = 0x14 / 4,
    DRIVER_FEATURES = 0x20 / 4,
    DRIVER_FEATURES_SELECT = 0x24 / 4,
    QUEUE_SELECT = 0x30 / 4,
    QUEUE_SIZE_MAX = 0x34 / 4,
    QUEUE_SIZE = 0x38 / 4,
    QUEUE_READY = 0x44 / 4,
    QUEUE_NOTIFY = 0x50 / 4,
    STATUS = 0x70 / 4,
    QUEUE_DESCRIPTORS = 0x80 / 4,
    QUEUE_AVAILABLE = 0x90 / 4,
    QUEUE_USED = 0xa0 / 4,
    CONFIG = 0x100 / 4,
};
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

#define IS_VIRTIO 0x74726976u
#define WINDOW_BYTES 4096u
#define DECLARATION "virtio_mmio.device=4K@0x"

static void barrier(void) { __asm__ volatile("" : : : "memory"); } /* x86 keeps the order of stores, and of loads */

static bool has_kind(volatile uint32_t *device, enum virtio_kind kind) {
    return device[MAGIC] == IS_VIRTIO && device[VERSION] == 2 && device[KIND] == kind;
}

static bool agree(volatile uint32_t *device) {
    device[STATUS] = 0;
    device[STATUS] = ACKNOWLEDGE;
    device[STATUS] = ACKNOWLEDGE | DRIVER;
    device[DEVICE_FEATURES_SELECT] = 1;
    if (!(device[DEVICE_FEATURES] & 1)) /* VIRTIO_F_VERSION_1, bit 32 */
        return false;
    device[DRIVER_FEATURES_SELECT] = 0;
    device[DRIVER_FEATURES] = 0;
    device[DRIVER_FEATURES_SELECT] = 1;
    device[DRIVER_FEATURES] = 1;
    device[STATUS] = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    return device[STATUS] & FEATURES_OK;
}

static uint64_t number(const char **at, unsigned base) {
    uint64_t value = 0;
    for (;; (*at)++) {
        char c = **at;
        unsigned digit = base;
        if (c >= '0' && c <= '9')
            digit = (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (unsigned)(c - 'a') + 10;
        if (digit >= base)
            return value;
        value = value * base + digit;
    }
}

/* Linux Documentation/admin-guide/kernel-parameters.rst: virtio_mmio.device=<size>@<address>:<interrupt> */
volatile uint32_t *virtio_find(enum virtio_kind kind) {
    size_t length = strlen(DECLARATION);
    for (const char *at = machine_command_line(); *at != '\0'; at++) {
        if (memcmp(at, DECLARATION, length) != 0) /* reads on into RAM, at worst */
            continue;
        at += length;
        uint64_t address = number(&at, 16);
        at += *at == ':';
        if (number(&at, 10) >= MACHINE_INTERRUPTS)
            return NULL;
        machine_map(address, address + WINDOW_BYTES);
        volatile uint32_t *device = (volatile uint32_t *)(uintptr_t)address;
        if (has_kind(device, kind))
            return agree(device) ? device : NULL;
        at--;
    }
    return NULL;
}

static void put_address(volatile uint32_t *device, uint32_t low, const volatile void *address) {
    device[low] = (uint32_t)(uintptr_t)address;
    device[low + 1] = (uint32_t)((uintptr_t)address >> 32);
}

bool virtio_start_ring(volatile uint32_t *device, uint32_t number, struct ring *ring) {
    ring->number = number;
    device[QUEUE_SELECT] = number;
    if (device[QUEUE_SIZE_MAX] < RING_SIZE)
        return false;
    device[QUEUE_SIZE] = RING_SIZE;
    put_address(device, QUEUE_DESCRIPTORS, ring->descriptors);
    put_address(device, QUEUE_AVAILABLE, &ring->available);
    put_address(device, QUEUE_USED, &ring->used);
    device[QUEUE_READY] = 1;
    return true;
}

void virtio_ready(volatile uint32_t *device) { device[STATUS] = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK; }

uint64_t virtio_config(volatile uint32_t *device) {
    return (uint64_t)device[CONFIG + 1] << 32 | device[CONFIG];
}

void ring_put(struct ring *ring, uint16_t head) {
    ring->available.ring[ring->available.index % RING_SIZE] = head;
    barrier();
    ring->available.index++;
}

void ring_tell(struct ring *ring, volatile uint32_t *device, unsigned enough) {
    barrier();
    if ((uint16_t)(ring->available.index - ring->published) < enough)
        return;
    ring->published = ring->available.index;
    device[QUEUE_NOTIFY] = ring->number;
}

bool ring_take(struct ring *ring, struct used_element *element) {
    barrier();
    if (*(volatile uint16_t *)&ring->used.index == ring->seen)
        return false;
    barrier();
    *element = ring->used.ring[ring->seen++ % RING_SIZE];
    return true;
}
