/* Virtio disks, as the kernel's arguments name them: by serial, or where a VMM has none by position. */
#ifndef RAMET_BLOCK_H
#define RAMET_BLOCK_H

#include <stdbool.h>
#include <stddef.h>

#define BLOCK_SERIAL_MAX 32
#define BLOCK_PATH_MAX 16

struct block_name {
    unsigned number; /* among the virtio disks, from 0 */
    char serial[BLOCK_SERIAL_MAX];
};

/* Takes `N,SERIAL` apart, which ends at `end` or with the text; `*rest` is what is behind it. */
bool block_name_of(const char *text, char end, struct block_name *name, const char **rest);

/* Finds its device, /dev/vdX, and waits a little for its driver. False when there is none. */
bool block_find(const struct block_name *name, char path[BLOCK_PATH_MAX]);

#endif
