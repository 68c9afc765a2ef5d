/* A client's session on a port: its handshake, its resumption, its end. */
#ifndef RAMET_SESSION_H
#define RAMET_SESSION_H

#include "link/port.h"

/* HELLO and ACK, whose answers' fields go to `writer`. */
void session_hello(struct port *port, const struct wire_frame *frame, struct wire_writer *writer);
void session_acknowledge(struct port *port, const struct wire_frame *frame, struct wire_writer *writer);

/* The port's connection has ended. A session that can be resumed is away then, for a while; another is over. */
void session_hang_up(struct port *port);
void session_end(struct port *port);
/* In a fork the sessions that were there before belong to the parent's clients. */
void session_forget_all_but(const struct port *own);
/* Ends those that have been away for too long. Milliseconds until the next one has, -1 when none is away. */
int sessions_time_out(void);

#endif
