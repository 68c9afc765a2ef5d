/* Data disks that the guest mounts by itself, as PID 1: those that the kernel's arguments name. */
#ifndef RAMET_DISKS_H
#define RAMET_DISKS_H

#include <stdbool.h>

#define DISKS_ARGUMENT "ramet.disk="

/* The drivers that a disk's filesystem needs, once, while `/` is the initramfs, which has them. */
void disks_drivers(void);

/* For each `ramet.disk=N,SERIAL:PATH` among the kernel's arguments, in their order: the ext4 filesystem of the virtio
 * disk with that serial, or where none has it of the Nth (from 0), is mounted at PATH, which is made.
 *
 * False when one isn't mounted: the console says which it is and why. A guest without a disk that it was promised is of
 * no use to anybody; its caller powers off. */
bool disks_mount(void);

/* What disks_mount has mounted is clean on its disk afterwards: unmounted, or at least read-only. */
void disks_leave(void);

#endif
