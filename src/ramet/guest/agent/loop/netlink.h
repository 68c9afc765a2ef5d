/* What the kernel tells of by netlink. */
#ifndef RAMET_NETLINK_H
#define RAMET_NETLINK_H

#include <stdint.h>

#include "loop/events.h"

/* A socket that hears those groups of a netlink protocol, already watched; -1 with errno. */
int netlink_watch(int protocol, uint32_t groups, enum event_kind kind);

#endif
