/* Starting a command: what EXEC asks for, and the child between fork and execve. */
#ifndef RAMET_START_H
#define RAMET_START_H

#include <stdbool.h>
#include <sys/types.h>

#include "link/message.h"
#include "link/wire.h"

struct start_request {
    const uint8_t *payload; /* of the EXEC frame, whose buffer has an octet to spare behind it */
    uint32_t length;
    uint32_t flags;
    uint64_t timeout_ms; /* 0: none */
    int stop_signal;     /* SIGTERM unless it is given */
};

struct start_result {
    pid_t pid;
    int report;    /* end of file: started. Else a start_report */
    int stdin_fd;  /* -1 unless asked for */
    int output[2]; /* -1 when detached */
};

struct start_report {
    int error;
    enum start_step step;
    char text[496]; /* with its NUL: the whole is below PIPE_BUF, so it arrives at once or not at all */
};

/* Checks EXEC's fields. NULL, or what is wrong with them. */
const char *start_parse(const struct wire_frame *frame, struct start_request *request);

/* The agent may have as many descriptors as it can; its commands begin with the limit that it was given. `protect`: the
 * kernel doesn't end it for want of memory, and its commands as any other process. */
void start_init(bool protect);

/* From now on commands enter their directory before they become their user, as in containers: an image may well have a
 * directory for them that this user can't enter. The main process always does. */
void start_in_container(void);

/* Forks. 0 or errno, with nothing left open. */
int start_command(const struct start_request *request, struct start_result *result);

#endif
