#include "exec/command_table.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "exec/drain.h"

struct command commands[COMMANDS_MAX];
int commands_used;

void (*command_let_go)(void);

void commands_init(void (*let_go)(void)) {
    commands_used = 0;
    command_let_go = let_go;
}

void command_close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd); /* leaves the epoll set by itself: no other descriptor refers to it */
    *fd = -1;
}

void command_close_stdin(struct command *command) {
    command_close_fd(&command->stdin_fd);
    if (command->held != NULL)
        munmap(command->held, STDIN_WINDOW);
    command->held = NULL;
    command->held_at = command->held_length = 0;
}

void command_close_output(struct command *command, int which) {
    command_close_fd(&command->output[which].fd);
    command->output[which].ready = false;
}

void command_release_output(struct command *command, int which) {
    if (command->output[which].fd >= 0)
        drain_adopt(command->output[which].fd);
    command->output[which].fd = -1;
    command->output[which].ready = false;
}

void command_free(struct command *command) {
    command_close_stdin(command);
    command_close_output(command, 0);
    command_close_output(command, 1);
    command_close_fd(&command->report);
    command->pid = 0;
}

void command_orphan(struct command *command) {
    command->port = -1;
    command->orphaned = true;
    command_close_stdin(command);
}

void command_write_stdin(struct command *command, const uint8_t *data, uint32_t length, uint32_t *written) {
    *written = 0;
    while (command->stdin_fd >= 0 && command->stdin_ready && *written < length) {
        ssize_t count = write(command->stdin_fd, data + *written, length - *written);
        if (count >= 0) {
            *written += (uint32_t)count;
        } else if (errno == EAGAIN) {
            command->stdin_ready = false;
        } else if (errno != EINTR) {
            /* The command closed its stdin. What comes is thrown away, or its client would wait for ever. */
            command_close_stdin(command);
        }
    }
    if (command->stdin_fd < 0)
        *written = length;
}
