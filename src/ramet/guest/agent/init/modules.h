/* Drivers: the kernel's modules that a list names, one path a line. */
#ifndef RAMET_MODULES_H
#define RAMET_MODULES_H

/* The modules of /etc/ramet/modules, in its order; `loaded` is called after each. From then on devices appear at any
 * time. One that can't be loaded is reported on the console and left out. */
void init_modules(void (*loaded)(void));
/* The same for another list. `loaded` may be NULL. */
void init_modules_of(const char *path, void (*loaded)(void));

#endif
