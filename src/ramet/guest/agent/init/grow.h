/* The filesystems of disks that the host has made larger. */
#ifndef RAMET_GROW_H
#define RAMET_GROW_H

#include <stdint.h>

struct growth {
    uint64_t device_bytes, filesystem_bytes;
};

/* Grows the ext4 filesystem that is mounted from `device`, and of which `directory` is a descriptor, to the size of the
 * device. A filesystem that has the size stays as it is. 0, or errno: the filesystem is as large as before, or between.
 *
 * Blocks until the kernel is done: 20 ms for 10 GiB, emulated. */
int grow_mounted(const char *device, int directory, struct growth *growth);

/* The same right after the mount at `path`. A failure is a line on the console: the filesystem keeps its size. */
void grow_at_mount(const char *device, const char *path);

#endif
