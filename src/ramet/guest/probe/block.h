/* The first virtio disk, a sector at a time. */
#ifndef PROBE_BLOCK_H
#define PROBE_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#define SECTOR_BYTES 512u

void block_init(void);
uint64_t block_sectors(void); /* 0: no disk */
/* Reads a sector into `words`, or writes it from there. False when the device says no. Waits for it. */
bool block_move(uint64_t sector, bool write, uint64_t words[SECTOR_BYTES / 8]);

#endif
