/* What PID 1 of an initramfs does: a place to live for programs, drivers for the ports, and the end of it all. */
#ifndef RAMET_INIT_H
#define RAMET_INIT_H

#include <stddef.h>

#include "session.h"

/* Filesystems and the console; `in_memory` mounts those in RAM. Nothing here fails: what can't be had is reported on the console and left out. */
void init_filesystems(void (*in_memory)(void));
/* The modules of /etc/ramet/modules, in its order; `loaded` is called after each. From then on devices appear at any
 * time. */
void init_modules(void (*loaded)(void));
/* The same for another list. `loaded` may be NULL. */
void init_modules_of(const char *path, void (*loaded)(void));
/* `lo`, the hostname of /etc/hostname, and /etc/ramet/rc in the background. */
void init_rest(void);

/* Ends every process, unmounts the disks, syncs and leaves. Returns only when the kernel refuses.
 *
 * `ramet.power_off=reset` among the kernel's arguments says that this machine has no power switch, and that its VMM
 * ends when the guest resets. A power-off is a reset there, and so that the two can be told apart the agent writes
 * `ramet: power off` to the console first, as a line of its own. */
void init_shutdown(enum shutdown_wish wish);

/* The kernel's arguments, as /proc/cmdline has them; empty where they can't be read. */
#define COMMAND_LINE_MAX 4096 /* twice what the kernel keeps: COMMAND_LINE_SIZE is 2048 on both architectures */
void init_command_line(char *line, size_t size);

/* Whether `word` is one of the arguments in `line`, as /proc/cmdline has them. */
bool init_has_argument(const char *line, const char *word);

/* The same in a guest that has an init of its own: asks that one. */
void init_ask_for_shutdown(enum shutdown_wish wish);

void init_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
