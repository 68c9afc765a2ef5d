/* The epoll set and the clock. */
#include "loop/events.h"

#include <time.h>

#define LONGEST_STRETCH_NS 2000000000u

static int epoll_set = -1;

int events_init(void) {
    epoll_set = epoll_create1(EPOLL_CLOEXEC);
    return epoll_set < 0 ? -1 : 0;
}

int events_wait(struct epoll_event *events, int most, int timeout_ms) {
    return epoll_wait(epoll_set, events, most, timeout_ms);
}

static int watch(int operation, int fd, enum event_kind kind, uint32_t index, uint32_t poll_mask) {
    struct epoll_event event = {.events = poll_mask | EPOLLET, .data.u64 = (uint64_t)kind << 32 | index};
    return epoll_ctl(epoll_set, operation, fd, &event);
}

int events_watch(int fd, enum event_kind kind, uint32_t index, uint32_t poll_mask) {
    return watch(EPOLL_CTL_ADD, fd, kind, index, poll_mask);
}

int events_rewatch(int fd, enum event_kind kind, uint32_t index, uint32_t poll_mask) {
    return watch(EPOLL_CTL_MOD, fd, kind, index, poll_mask);
}

uint64_t events_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t events_lived_ns(void) {
    static uint64_t lived, looked;
    uint64_t now = events_now_ns(), passed = now - looked;
    looked = now;
    lived += passed < LONGEST_STRETCH_NS ? passed : LONGEST_STRETCH_NS;
    return lived;
}
