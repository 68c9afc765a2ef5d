#include "block.h"

#include <string.h>

#include "machine.h"
#include "virtio.h"

/* Virtual I/O Device 1.2, section 5.2.6. */
static struct {
    uint32_t type, reserved;
    uint64_t sector;
} header;
static volatile uint8_t status;
static uint64_t data[SECTOR_BYTES / 8];
static struct ring requests;
static volatile uint32_t *device;
static uint64_t sectors;

void block_init(void) {
    device = virtio_find(VIRTIO_BLOCK);
    if (device == NULL || !virtio_start_ring(device, 0, &requests))
        return;
    virtio_ready(device);
    sectors = virtio_config(device);
}

uint64_t block_sectors(void) { return sectors; }

bool block_move(uint64_t sector, bool write, uint64_t words[SECTOR_BYTES / 8]) {
    header.type = write;
    header.sector = sector;
    status = 0xff;
    memcpy(data, words, sizeof data);
    uint16_t to_data = write ? DESCRIPTOR_NEXT : DESCRIPTOR_NEXT | DESCRIPTOR_WRITE;
    requests.descriptors[0] = (struct descriptor){(uintptr_t)&header, sizeof header, DESCRIPTOR_NEXT, 1};
    requests.descriptors[1] = (struct descriptor){(uintptr_t)data, sizeof data, to_data, 2};
    requests.descriptors[2] = (struct descriptor){(uintptr_t)&status, 1, DESCRIPTOR_WRITE, 0};
    ring_put(&requests, 0);
    ring_tell(&requests, device, 1);
    struct used_element used;
    while (!ring_take(&requests, &used))
        machine_idle(); /* the caller finds what else wakes it up: rings are polled before each idling */
    memcpy(words, data, sizeof data);
    return status == 0;
}
