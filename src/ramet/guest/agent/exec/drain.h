/* Pipes of commands that have ended, which processes in the background still write to: read and thrown away, so that
 * those neither block nor die of SIGPIPE. */
#ifndef RAMET_DRAIN_H
#define RAMET_DRAIN_H

#include <stdint.h>

/* Each is kept until its last writer has gone. A pipe beyond these is closed. */
#define DRAINS_MAX 1024

void drain_init(void);
/* Takes over a descriptor that is in the epoll set; it is closed when nobody can write to it any more. */
void drain_adopt(int fd);
void drain_event(uint32_t index);

#endif
