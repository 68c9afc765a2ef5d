/* A client's session on a port: its handshake, its requests, its end. */
#ifndef RAMET_SESSION_H
#define RAMET_SESSION_H

#include "port.h"

enum shutdown_wish { STAY, POWER_OFF, REBOOT, HALT };

/* An agent that isn't in a guest of its own refuses IDENTITY and SHUTDOWN: they would change its host. */
void session_forbid_machine_changes(void);

void session_frame(struct port *port, struct wire_frame *frame);
/* The port's connection has ended. A session that can be resumed is away then, for a while; another is over. */
void session_hang_up(struct port *port);
void session_end(struct port *port);
/* Ends those that have been away for too long. Milliseconds until the next one has, -1 when none is away. */
int sessions_time_out(void);

/* What a client asked for by SHUTDOWN. */
enum shutdown_wish session_shutdown_wish(void);

/* After fork(2) every page is write-protected until it is written. In an emulated fork of this machine the first such
 * write runs 650 blocks of the kernel for the first time, 3.5 ms: so what its first requests write is written before,
 * as soon as a child has let go of it. */
void session_unshare(void);

#endif
