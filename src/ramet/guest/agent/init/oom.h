/* When memory runs out in the guest, its commands go, and not the agent, without which nobody could say so. */
#ifndef RAMET_OOM_H
#define RAMET_OOM_H

#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#define OOM_NEVER "-1000"
#define OOM_AS_OTHERS "0"

/* proc(5), /proc/PID/oom_score_adj, of this process and of its children to come. False where that isn't allowed. */
static inline bool oom_score(const char *score) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool written = write(fd, score, strlen(score)) > 0;
    close(fd);
    return written;
}

#endif
