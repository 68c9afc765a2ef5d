/* What PID 1 of an initramfs does: a place to live for programs. */
#ifndef RAMET_INIT_H
#define RAMET_INIT_H

/* Filesystems and the console. Nothing here fails: what can't be had is reported on the console and left out. */
void init_filesystems(void);
/* `lo`; unless `/` is a container image, which has no say in this, also the hostname of /etc/hostname, and /etc/ramet/rc in
 * the background. */
void init_rest(void);

#endif
