/* IDENTITY: what makes a fork somebody else. Its order is docs/reference/protocol.md's. */
#ifndef RAMET_IDENTITY_H
#define RAMET_IDENTITY_H

#include "link/wire.h"

/* Takes up the generation that an agent before this one wrote down, if any. */
void identity_init(void);
uint64_t identity_generation(void);
/* Closes the files that are kept open, so that the filesystem that they are on can be unmounted. */
void identity_leave(void);
/* `unshare` (loop/events.h) for what this writes. */
void identity_unshare(void);

/* Carries out the request and writes the answer's fields, all read back from the kernel and the files.
 * 0, or errno with `*step` naming what failed; the steps before it stay done. EBADMSG: nothing was done. */
int identity_apply(const struct wire_frame *frame, struct wire_writer *answer, const char **step);

/* CLOCK: sets the wall clock alone and writes the answer's field. 0, or errno; EBADMSG: nothing was done. */
int identity_set_clock(const struct wire_frame *frame, struct wire_writer *answer);

#endif
