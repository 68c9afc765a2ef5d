/* The machine's own addresses, as IDENTITY_DONE gives them. */
#ifndef RAMET_ADDRESSES_H
#define RAMET_ADDRESSES_H

#include "link/wire.h"

void addresses_init(void);
/* `unshare` (loop/events.h) for what this writes. */
void addresses_unshare(void);

/* Some may have come or gone. */
void addresses_event(void);

/* Puts each as a text under `tag`: IPv4 first, none of a loopback's, no link-local IPv6, not more than sixteen. */
void addresses_put(struct wire_writer *answer, uint8_t tag);

#endif
