/* A client's session on a port: its handshake, its requests, its end. */
#ifndef RAMET_SESSION_H
#define RAMET_SESSION_H

#include "port.h"

enum shutdown_wish { STAY, POWER_OFF, REBOOT, HALT };

/* An agent that isn't in a guest of its own refuses IDENTITY and SHUTDOWN: they would change its host. */
void session_forbid_machine_changes(void);

void session_frame(struct port *port, struct wire_frame *frame);
void session_hang_up(struct port *port);

/* What a client asked for by SHUTDOWN. */
enum shutdown_wish session_shutdown_wish(void);

#endif
