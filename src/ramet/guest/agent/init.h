/* What PID 1 of an initramfs does: a place to live for programs, drivers for the ports, and the end of it all. */
#ifndef RAMET_INIT_H
#define RAMET_INIT_H

#include "session.h"

/* Filesystems and the console. Nothing here fails: what can't be had is reported on the console and left out. */
void init_filesystems(void);
/* The modules of /etc/ramet/modules, in its order. After it devices appear at any time. */
void init_modules(void);
/* `lo`, the hostname of /etc/hostname, and /etc/ramet/rc in the background. */
void init_rest(void);

/* Ends every process, syncs and leaves. Returns only when the kernel refuses. */
void init_shutdown(enum shutdown_wish wish);

/* The same in a guest that has an init of its own: asks that one. */
void init_ask_for_shutdown(enum shutdown_wish wish);

void init_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
