#include "exec/drain.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "loop/events.h"

#define READS_A_TURN 8 /* somebody may write without end, and others wait */

static int drains[DRAINS_MAX];
static uint8_t waste[65536];

void drain_init(void) {
    for (int i = 0; i < DRAINS_MAX; i++)
        drains[i] = -1;
}

/* Reads what there is, a few times at most. False when no more will come, ever. */
static bool empty(int fd) {
    for (int i = 0; i < READS_A_TURN; i++) {
        ssize_t count = read(fd, waste, sizeof waste);
        if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR))
            return false;
        if (count < 0 && errno == EAGAIN)
            break;
    }
    return true;
}

void drain_adopt(int fd) {
    if (empty(fd)) /* nearly always it isn't: nobody else has the pipe */
        for (uint32_t i = 0; i < DRAINS_MAX; i++) {
            if (drains[i] >= 0)
                continue;
            if (events_rewatch(fd, E_DRAIN, i, EPOLLIN) < 0)
                break;
            drains[i] = fd;
            return;
        }
    close(fd);
}

void drain_event(uint32_t index) {
    int fd = drains[index];
    if (fd < 0)
        return;
    /* Edge-triggered: to be told again of what is left, it is watched anew. */
    if (empty(fd) && events_rewatch(fd, E_DRAIN, index, EPOLLIN) == 0)
        return;
    close(fd);
    drains[index] = -1;
}
