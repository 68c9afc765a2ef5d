/* The read-only parts of a container image: EROFS devices, each of which ends with a mark that says whose pages it has. */
#ifndef RAMET_BASES_H
#define RAMET_BASES_H

#include <stdbool.h>

/* Checks every device that the kernel's arguments name by `ramet.base=N,SERIAL:BLOCKS:SHA`, and mounts the first, the
 * image's own, at `target`, with the others as its further devices, in that order.
 *
 * Linux mounts an image with devices that aren't its own, and answers with other files' contents: so all of them are
 * compared with what the host says before that. False when one is missing or another one, or the mount fails: the console
 * says which and why. */
bool bases_mount(const char *target);

#endif
