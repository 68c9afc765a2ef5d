/* virtio over MMIO, version 2 (Virtual I/O Device 1.2, sections 2.7 and 4.2): finding a device, and polled rings. */
#ifndef PROBE_VIRTIO_H
#define PROBE_VIRTIO_H

#include <stdbool.h>
#include <stdint.h>

#define RING_SIZE 16u
#define DESCRIPTOR_NEXT 1u
#define DESCRIPTOR_WRITE 2u /* by the device */

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

struct used_element {
    uint32_t id, length;
};

struct ring {
    struct descriptor descriptors[RING_SIZE];
    struct {
        uint16_t flags, index, ring[RING_SIZE], unused;
    } available;
    uint16_t seen, published; /* ours: used elements taken, and available ones that the device was told of */
    uint32_t number;
    struct {
        uint16_t flags, index;
        struct used_element ring[RING_SIZE];
        uint16_t unused;
    } used __attribute__((aligned(4)));
} __attribute__((aligned(16)));

enum virtio_kind { VIRTIO_BLOCK = 2, VIRTIO_BALLOON = 5, VIRTIO_VSOCK = 19 };

/* The registers of the first device of that kind on the command line, with features agreed on (none but version 1);
 * NULL when there is none whose interrupt comes through. Queues are to be started before `virtio_ready`. */
volatile uint32_t *virtio_find(enum virtio_kind kind);
bool virtio_start_ring(volatile uint32_t *device, uint32_t number, struct ring *ring);
void virtio_ready(volatile uint32_t *device);
uint64_t virtio_config(volatile uint32_t *device); /* the first 64 bits of its configuration */

/* Makes the chain that begins with descriptor `head` available. `ring_tell` tells the device, when at least `enough`
 * are new: telling is an exit. A device that has run out of buffers has used all of them, so that with half of them as
 * `enough` it will be told. */
void ring_put(struct ring *ring, uint16_t head);
void ring_tell(struct ring *ring, volatile uint32_t *device, unsigned enough);
/* The next chain that the device has used, or false. */
bool ring_take(struct ring *ring, struct used_element *element);

#endif
