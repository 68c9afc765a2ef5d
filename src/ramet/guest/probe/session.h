/* What a client says on a connection: handshake and requests. */
#ifndef PROBE_SESSION_H
#define PROBE_SESSION_H

#include "connection.h"

enum shutdown_wish { STAY, POWER_OFF, REBOOT };

/* Answers the next frames while there is room for answers. True when it got anything done. */
bool session_work(struct connection *connection);
void session_hang_up(struct connection *connection);
enum shutdown_wish session_shutdown_wish(void);

#endif
