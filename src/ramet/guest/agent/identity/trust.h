/* TRUST: certificates of authorities that the guest's programs are to trust. */
#ifndef RAMET_TRUST_H
#define RAMET_TRUST_H

#include <stddef.h>

#include "link/wire.h"

/* Carries out the request and writes the answer's fields. 0, or errno with a text; what was done before stays. */
int trust_add(const struct wire_frame *frame, struct wire_writer *answer, char *text, size_t size);

#endif
