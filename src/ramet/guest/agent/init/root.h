/* The root of a guest of a container image: an overlay over the image, in which everything but the agent lives.
 *
 * The agent stays outside the image. It changes its own root, and the kernel's threads keep the initramfs: there the
 * kernel finds modprobe and the modules.
 */
#ifndef RAMET_ROOT_H
#define RAMET_ROOT_H

#include <stdbool.h>
#include <stdint.h>

/* Of the kernel: where what is written to the root lies, `disk:N,SERIAL` or `ram:BYTES`. */
#define ROOT_ARGUMENT "ramet.root="

enum root_kind { ROOT_INITRAMFS, ROOT_DISK, ROOT_RAM };

struct root_room {
    uint64_t bytes, free_bytes, free_files;
    bool is_full;
};

/* With `ramet.root=disk:N,SERIAL` or `ramet.root=ram:BYTES` among the kernel's arguments: mounts the image and what is
 * written to it, and makes that `/`. Without: nothing.
 *
 * False when it can't be had: the console says why, and where this leaves `/` isn't said. Its caller powers off. */
bool root_enter(void);

enum root_kind root_kind(void);

/* False when `/` isn't a container image's, or can't be asked. */
bool root_room(struct root_room *room);

/* A descriptor of the filesystem of the root disk, which no path leads to; -1 with errno when there is none. */
int root_open_disk(void);

/* What an error of the guest's root means for its user: "" or a text in parentheses, with a space before it, that names the
 * option of `ramet run`. */
const char *root_advice(int error);

/* A line on the console when the root is full: programs that failed for that often don't say so themselves. */
void root_say_if_full(void);

/* Goes back to the initramfs. What was written is clean on its disk then: unmounted, or at least read-only. No process may
 * be left but this one. */
void root_leave(void);

#endif
