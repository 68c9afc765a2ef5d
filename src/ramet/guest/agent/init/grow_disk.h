/* GROW: the filesystem of a disk that became larger while it is mounted. */
#ifndef RAMET_GROW_DISK_H
#define RAMET_GROW_DISK_H

#include <stddef.h>

#include "init/grow.h"

/* Grows the filesystem of the disk of that name, as the kernel's arguments have it, to the size of its device. 0, or errno
 * with a text that says why. */
int grow_disk(const char *name, struct growth *growth, char *text, size_t size);

#endif
