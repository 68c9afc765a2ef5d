/* Output that is kept until the client has it, and a session that is resumed over another connection. */
#ifndef RAMET_RESUME_H
#define RAMET_RESUME_H

#include "link/port.h"

/* The session's client has had so many counted frames. */
void port_acknowledge(struct port *port, uint64_t count);
/* Resumes `session`, whose client has had `count` frames, over the connection of `fresh`, whose port is free
 * then. What its client hasn't had is to be sent again, behind what is sent by `port_send_before`. False, and nothing
 * is changed, when not everything is there any more or never was. */
bool port_take_over(struct port *session, struct port *fresh, uint64_t count);
void port_send_before(struct port *port, uint8_t type, const struct wire_writer *writer);

#endif
