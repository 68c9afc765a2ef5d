/* The table of commands, shared by what answers clients (command.c) and what moves data (pump.c). */
#ifndef RAMET_COMMAND_TABLE_H
#define RAMET_COMMAND_TABLE_H

#include <sys/types.h>

#include "link/message.h"
#include "link/port.h"

#define ARGV_KEPT 128u       /* of encoded argv, for LIST */
#define NOT_ENDED UINT32_MAX /* output still to deliver while the process lives: no limit */

struct output {
    int fd;
    bool ready;
    uint32_t left;
};

struct command {
    pid_t pid; /* 0: a free slot */
    int port;  /* whose session it belongs to; -1: detached or orphaned */
    uint32_t stream;
    bool detached, orphaned, starting, refused, ended, timed_out;
    bool is_main;
    int stop_signal; /* of the main process */
    int wait_status;
    uint64_t deadline_ns; /* 0: none */

    int report;
    bool report_ready;

    struct output output[2];
    uint64_t credit;

    int stdin_fd;
    bool stdin_ready, stdin_eof;
    uint32_t stdin_allowed; /* what the client may still send */
    uint32_t stdin_taken;   /* of what it sent, not yet granted again */
    uint8_t *held;          /* what the pipe didn't take; mapped when first needed */
    uint32_t held_at, held_length;

    uint32_t argv_length;
    uint8_t argv[ARGV_KEPT];
};

extern struct command commands[COMMANDS_MAX];
extern int commands_used; /* slots from here on were never used */
extern void (*command_let_go)(void);

/* `let_go` is called each time that a started child has released the pages that it shared with the agent. */
void commands_init(void (*let_go)(void));

void command_close_fd(int *fd);
void command_close_stdin(struct command *command);
void command_close_output(struct command *command, int which);
/* The command has ended, and what it wrote itself was read: processes that it left in the background may write on. */
void command_release_output(struct command *command, int which);
void command_free(struct command *command);
/* It loses its client: its input ends, its output is read and thrown away, it keeps running. */
void command_orphan(struct command *command);
/* Writes what the pipe takes. When nobody reads it any more, everything counts as written. */
void command_write_stdin(struct command *command, const uint8_t *data, uint32_t length, uint32_t *written);

#endif
