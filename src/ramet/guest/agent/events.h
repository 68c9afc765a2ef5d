/* What an epoll event is about. Events only set flags; the work is done after them, so a late one harms nothing. */
#ifndef RAMET_EVENTS_H
#define RAMET_EVENTS_H

#include <stdint.h>

enum event_kind {
    E_SIGNAL,
    E_UEVENT,
    E_LISTENER,
    E_ADDRESSES,
    E_KEPT,
    E_PORT,
    E_START_REPORT,
    E_STDIN,
    E_STDOUT,
    E_STDERR,
    E_DRAIN
};

/* Watches `fd`, edge-triggered: a virtio port without a host reports POLLHUP for as long as that lasts, and a
 * pipe whose client is slow stays readable; neither may wake the agent again and again. Returns 0 or -1. */
int events_watch(int fd, enum event_kind kind, uint32_t index, uint32_t poll_mask);

/* The same descriptor is about another index from now on; what is ready is reported again. 0 or -1. */
int events_rewatch(int fd, enum event_kind kind, uint32_t index, uint32_t poll_mask);

uint64_t events_now_ns(void); /* CLOCK_MONOTONIC */

/* Makes the page of what is at `at` this process's own again, after a fork. */
static inline void unshare(void *at) {
    volatile unsigned char *octet = at;
    *octet = *octet;
}

#endif
