/* IDENTITY, checked as the agent's identity/identity.c checks it. */
#ifndef PROBE_IDENTITY_H
#define PROBE_IDENTITY_H

#include "link/wire.h"

uint64_t identity_generation(void);
const char *identity_hostname(void);
uint64_t identity_realtime_ns(void);

/* Becomes what the frame says and writes the answer, read back. False, with nothing changed, when it is malformed. */
bool identity_apply(const struct wire_frame *frame, struct wire_writer *answer);

/* CLOCK: sets the wall clock alone. False, with nothing changed, when it is malformed. */
bool identity_set_clock(const struct wire_frame *frame, struct wire_writer *answer);

#endif
