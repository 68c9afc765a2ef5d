/* The virtio balloon: memory that is given back to the host. */
#ifndef PROBE_BALLOON_H
#define PROBE_BALLOON_H

#include <stdbool.h>
#include <stdint.h>

#define BALLOON_PAGES_MAX 256u

void balloon_init(void);
bool balloon_exists(void);
/* Gives back up to BALLOON_PAGES_MAX pages from that address on, and waits until they are taken. They can be used
 * again at any time; what they hold then is the host's to say. */
void balloon_give(uint64_t address, uint32_t pages);

#endif
