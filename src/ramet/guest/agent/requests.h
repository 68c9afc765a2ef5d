/* Requests of a client: each goes to the module that serves it. */
#ifndef RAMET_REQUESTS_H
#define RAMET_REQUESTS_H

#include "init/power.h"
#include "link/port.h"

/* An agent outside of a guest refuses IDENTITY, CLOCK and SHUTDOWN: they would change its host. */
void requests_forbid_machine_changes(void);

/* A frame that has come in on a port. */
void requests_frame(struct port *port, struct wire_frame *frame);

/* The wish of a client that has sent SHUTDOWN, and the time that it gives a main process. */
enum shutdown_wish requests_shutdown_wish(void);
uint32_t requests_grace_ms(void);

/* `unshare` (loop/events.h) for what requests write: this, the ports and the identity. */
void requests_unshare(void);

#endif
