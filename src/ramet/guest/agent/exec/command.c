/* What clients ask of commands. */
#include "exec/command.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "exec/command_table.h"
#include "exec/main_process.h"
#include "exec/start.h"
#include "link/message.h"
#include "loop/events.h"

#define LOOK_MS 1000u

static void signal_group(struct command *command, int number) {
    if (command->ended)
        return; /* reaped: its number may be another's by now */
    if (kill(-command->pid, number) < 0 || number == SIGKILL)
        kill(command->pid, number); /* not yet a group leader, or one that left its group */
}

static struct command *on_stream(struct port *port, uint32_t stream) {
    int index = port_index(port);
    for (int i = 0; i < commands_used; i++)
        if (commands[i].pid != 0 && commands[i].port == index && commands[i].stream == stream)
            return &commands[i];
    return NULL;
}

/* The client broke the rules of its stream: the command is killed and the stream ends with an error. */
static void end_stream(struct port *port, struct command *command, int error, const char *text) {
    signal_group(command, SIGKILL);
    command_orphan(command);
    port_send_error(port, command->stream, error, text);
}

static void keep_argv(struct command *command, const struct wire_frame *frame) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_writer writer = {.buffer = command->argv, .capacity = ARGV_KEPT};
    struct wire_field field;
    while (wire_next(&reader, &field) > 0 && !writer.full) {
        if (field.tag != 1)
            continue;
        uint32_t left = writer.capacity - writer.length;
        left = left > WIRE_FIELD_HEADER ? left - WIRE_FIELD_HEADER : 0;
        wire_put(&writer, 2, field.value, field.length < left ? field.length : left);
    }
    command->argv_length = writer.length;
}

static struct command *claim_slot(const struct port *port) {
    int in_session = 0;
    struct command *free = NULL;
    for (int i = 0; i < COMMANDS_MAX; i++) {
        if (i < commands_used && commands[i].pid != 0)
            in_session += commands[i].port == port_index(port);
        else if (free == NULL)
            free = &commands[i];
    }
    return in_session < SESSION_COMMANDS_MAX ? free : NULL;
}

void command_exec(struct port *port, struct wire_frame *frame) {
    struct start_request request;
    struct start_result started;
    struct command *command = on_stream(port, frame->stream);
    if (command != NULL) {
        end_stream(port, command, EBUSY, "EXEC on a stream that is in use");
        return;
    }
    const char *wrong = frame->stream == 0 ? "EXEC on stream 0" : start_parse(frame, &request);
    if (wrong != NULL) {
        port_send_error(port, frame->stream, EINVAL, wrong);
        return;
    }
    if ((command = claim_slot(port)) == NULL) {
        port_send_error(port, frame->stream, EAGAIN, "too many commands at once");
        return;
    }
    if ((request.flags & EXEC_MAIN) && main_process_is_there()) {
        port_send_error(port, frame->stream, EEXIST, "the guest has a main process already");
        return;
    }
    int error = start_command(&request, &started);
    if (error != 0) {
        port_send_error(port, frame->stream, error, strerror(error));
        return;
    }
    int index = (int)(command - commands);
    if (index >= commands_used)
        commands_used = index + 1;
    *command = (struct command){
        .pid = started.pid,
        .port = port_index(port),
        .stream = frame->stream,
        .detached = request.flags & EXEC_DETACHED,
        .is_main = request.flags & EXEC_MAIN,
        .stop_signal = request.stop_signal,
        .starting = true,
        .report = started.report,
        .output = {{started.output[0], false, NOT_ENDED}, {started.output[1], false, NOT_ENDED}},
        .credit = OUTPUT_WINDOW,
        .stdin_fd = started.stdin_fd,
        .stdin_ready = true,
        .stdin_allowed = started.stdin_fd >= 0 ? STDIN_WINDOW : 0,
    };
    if (request.timeout_ms > 0 && request.timeout_ms < UINT64_MAX / 2000000u)
        command->deadline_ns = events_lived_ns() + request.timeout_ms * 1000000u;
    keep_argv(command, frame);
    /* New edge-triggered watches report at once what is ready already. */
    if (events_watch(started.report, E_START_REPORT, (uint32_t)index, EPOLLIN) < 0 ||
        (started.stdin_fd >= 0 && events_watch(started.stdin_fd, E_STDIN, (uint32_t)index, EPOLLOUT) < 0) ||
        (started.output[0] >= 0 && events_watch(started.output[0], E_STDOUT, (uint32_t)index, EPOLLIN) < 0) ||
        (started.output[1] >= 0 && events_watch(started.output[1], E_STDERR, (uint32_t)index, EPOLLIN) < 0))
        end_stream(port, command, errno, "epoll_ctl");
}

void command_stdin(struct port *port, struct wire_frame *frame) {
    struct command *command = on_stream(port, frame->stream);
    if (command == NULL)
        return;
    if (frame->length > command->stdin_allowed) {
        end_stream(port, command, EPROTO, "more stdin than was granted");
        return;
    }
    command->stdin_allowed -= frame->length;
    uint32_t written = 0;
    if (command->held_length == 0)
        command_write_stdin(command, frame->payload, frame->length, &written);
    command->stdin_taken += written;
    uint32_t rest = frame->length - written;
    if (rest == 0)
        return;
    if (command->held == NULL) {
        void *memory = mmap(NULL, STDIN_WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            end_stream(port, command, ENOMEM, "no memory for stdin");
            return;
        }
        command->held = memory;
    }
    if (command->held_at + command->held_length + rest > STDIN_WINDOW) {
        memmove(command->held, command->held + command->held_at, command->held_length);
        command->held_at = 0;
    }
    /* It fits: what is held plus what is allowed never exceeds the window. */
    memcpy(command->held + command->held_at + command->held_length, frame->payload + written, rest);
    command->held_length += rest;
}

void command_stdin_eof(struct port *port, struct wire_frame *frame) {
    struct command *command = on_stream(port, frame->stream);
    if (command == NULL)
        return;
    command->stdin_eof = true;
    command->stdin_allowed = 0;
    if (command->held_length == 0)
        command_close_stdin(command);
}

static bool only_number(struct wire_frame *frame, uint64_t *number) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    bool found = false;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1)
            found = wire_number(&field, 4, number);
    return found && more == 0;
}

void command_signal(struct port *port, struct wire_frame *frame) {
    struct command *command = on_stream(port, frame->stream);
    uint64_t number;
    if (command == NULL)
        return;
    if (!only_number(frame, &number) || number < 1 || number >= NSIG)
        end_stream(port, command, EINVAL, "not a signal");
    else
        signal_group(command, (int)number);
}

void command_credit(struct port *port, struct wire_frame *frame) {
    struct command *command = on_stream(port, frame->stream);
    uint64_t bytes;
    if (command == NULL)
        return;
    if (!only_number(frame, &bytes))
        end_stream(port, command, EINVAL, "not a credit");
    else if (command->credit < UINT64_MAX / 2)
        command->credit += bytes;
}

void commands_orphan(int port_index) {
    for (int i = 0; i < commands_used; i++)
        if (commands[i].pid != 0 && commands[i].port == port_index)
            command_orphan(&commands[i]);
}

void commands_orphan_all_but(int port_index) {
    for (int i = 0; i < commands_used; i++)
        if (commands[i].pid != 0 && commands[i].port >= 0 && commands[i].port != port_index)
            command_orphan(&commands[i]);
}

void command_event(int kind, uint32_t index) {
    struct command *command = &commands[index];
    switch (kind) {
    case E_START_REPORT:
        command->report_ready = true;
        break;
    case E_STDIN:
        command->stdin_ready = true;
        break;
    case E_STDOUT:
    case E_STDERR:
        command->output[kind == E_STDERR].ready = true;
        break;
    }
}

void command_reaped(int pid, int wait_status) {
    for (int i = 0; i < commands_used; i++) {
        struct command *command = &commands[i];
        if (command->pid != pid || command->ended)
            continue;
        command->ended = true;
        command->wait_status = wait_status;
        command->deadline_ns = 0;
        command_close_stdin(command);
        for (int which = 0; which < 2; which++) {
            struct output *output = &command->output[which];
            int waiting = 0;
            if (output->fd < 0 || ioctl(output->fd, FIONREAD, &waiting) < 0 || waiting <= 0) {
                command_release_output(command, which);
                continue;
            }
            output->left = (uint32_t)waiting;
            output->ready = true;
        }
        return;
    }
}

int commands_time_out(void) {
    uint64_t now = 0, next = UINT64_MAX;
    for (int i = 0; i < commands_used; i++) {
        struct command *command = &commands[i];
        if (command->pid == 0 || command->deadline_ns == 0)
            continue;
        if (now == 0)
            now = events_lived_ns();
        if (command->deadline_ns > now) {
            next = command->deadline_ns < next ? command->deadline_ns : next;
            continue;
        }
        command->timed_out = true;
        command->deadline_ns = 0;
        signal_group(command, SIGKILL);
    }
    if (next == UINT64_MAX)
        return -1;
    uint64_t wait_ms = (next - now) / 1000000u + 1;
    return (int)(wait_ms < LOOK_MS ? wait_ms : LOOK_MS);
}

void commands_list(struct wire_writer *writer) {
    for (int i = 0; i < commands_used; i++) {
        struct command *command = &commands[i];
        if (command->pid == 0 || command->ended || command->refused)
            continue;
        uint8_t fields[ARGV_KEPT + 64];
        struct wire_writer process = {.buffer = fields, .capacity = sizeof fields};
        wire_put_number(&process, 1, 4, (uint32_t)command->pid);
        memcpy(fields + process.length, command->argv, command->argv_length);
        process.length += command->argv_length;
        wire_put_number(&process, 3, 1, command->orphaned);
        wire_put_number(&process, 4, 1, command->detached);
        wire_put(writer, 1, fields, process.length);
    }
}
