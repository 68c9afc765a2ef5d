#include "balloon.h"

#include <stddef.h>

#include "machine.h"
#include "virtio.h"

/* Virtual I/O Device 1.2, section 5.5.2 and 5.5.6. */
enum { INFLATE = 0, DEFLATE = 1 };

static uint32_t numbers[BALLOON_PAGES_MAX];
static struct ring given, taken_back; /* a device wants all of its queues started, also what is never used */
static volatile uint32_t *device;

void balloon_init(void) {
    volatile uint32_t *found = virtio_find(VIRTIO_BALLOON);
    if (found == NULL || !virtio_start_ring(found, INFLATE, &given) || !virtio_start_ring(found, DEFLATE, &taken_back))
        return;
    virtio_ready(found);
    device = found;
}

bool balloon_exists(void) { return device != NULL; }

void balloon_give(uint64_t address, uint32_t pages) {
    for (uint32_t i = 0; i < pages; i++)
        numbers[i] = (uint32_t)(address / PAGE_BYTES) + i;
    given.descriptors[0] = (struct descriptor){(uintptr_t)numbers, pages * sizeof numbers[0], 0, 0};
    ring_put(&given, 0);
    ring_tell(&given, device, 1);
    struct used_element used;
    while (!ring_take(&given, &used))
        machine_idle();
}
