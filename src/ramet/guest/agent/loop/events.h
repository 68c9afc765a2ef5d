/* What an epoll event is about. Events only set flags; the work is done after them, so a late one harms nothing. */
#ifndef RAMET_EVENTS_H
#define RAMET_EVENTS_H

#include <stdint.h>
#include <sys/epoll.h>

enum event_kind {
    E_SIGNAL,
    E_UEVENT,
    E_LISTENER,
    E_ADDRESSES,
    E_IDENTITY_FILES,
    E_PORT,
    E_START_REPORT,
    E_STDIN,
    E_STDOUT,
    E_STDERR,
    E_DRAIN
};

/* Makes the epoll set. 0, or -1 with errno. */
int events_init(void);

/* Waits for events, as epoll_wait(2) does, and returns their count; the two functions below take an event apart. */
int events_wait(struct epoll_event *events, int most, int timeout_ms);

static inline enum event_kind event_kind(const struct epoll_event *event) {
    return (enum event_kind)(event->data.u64 >> 32);
}

static inline uint32_t event_index(const struct epoll_event *event) { return (uint32_t)event->data.u64; }

/* Watches `fd`, edge-triggered: a virtio port without a host reports POLLHUP for as long as that lasts, and a
 * pipe whose client is slow stays readable; neither may wake the agent again and again. Returns 0 or -1. */
int events_watch(int fd, enum event_kind kind, uint32_t index, uint32_t poll_mask);

/* The same descriptor is about another index from now on; what is ready is reported again. 0 or -1. */
int events_rewatch(int fd, enum event_kind kind, uint32_t index, uint32_t poll_mask);

uint64_t events_now_ns(void); /* CLOCK_MONOTONIC */

/* The time that this guest has lived through. A VM that is paused, or whose host sleeps, finds its clock advanced all at
 * once on some VMMs: a stretch in which nobody here could run doesn't count against the time that somebody has. So that each
 * stretch is short, who has a limit looks at this every second. */
uint64_t events_lived_ns(void);

/* Makes the page of what is at `at` this process's own again, after a fork(2): until it is written, every page is
 * write-protected then. In an emulated fork of this machine the first such write runs 650 blocks of the kernel for the
 * first time, 3.5 ms: so what the first requests write is written before, as soon as a child has released it. */
static inline void unshare(void *at) {
    volatile unsigned char *octet = at;
    *octet = *octet;
}

#endif
