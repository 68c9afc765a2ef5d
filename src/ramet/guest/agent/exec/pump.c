#include "exec/pump.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#include "exec/command_table.h"
#include "exec/main_process.h"
#include "exec/start.h"

#define STDIN_GRANT (STDIN_WINDOW / 2) /* grants smaller than this cost more than they give */

static int first_turn;

/* Did execve succeed? Its pipe closed says yes; a report in it says why not. */
static bool pump_start(struct command *command, struct port *port) {
    if (!command->starting || !command->report_ready || (port != NULL && !port_has_small_room(port)))
        return false;
    struct start_report report;
    ssize_t count = read(command->report, &report, sizeof report);
    if (count < 0) {
        command->report_ready = errno != EAGAIN && errno != EINTR ? command->report_ready : false;
        return false;
    }
    command_close_fd(&command->report);
    command_let_go();
    command->starting = false;
    if (count == sizeof report) {
        report.text[sizeof report.text - 1] = '\0';
        if (port != NULL)
            port_send_start_error(port, command->stream, report.error, report.step, report.text);
        command->refused = true;
        command_orphan(command); /* nothing more to tell; the slot waits for the child to be reaped */
        return true;
    }
    if (port != NULL) {
        uint8_t payload[WIRE_FIELD_HEADER + 4];
        struct wire_writer writer = {.buffer = payload, .capacity = sizeof payload};
        wire_put_number(&writer, 1, 4, (uint32_t)command->pid);
        port_send(port, M_STARTED, command->stream, payload, writer.length);
    }
    if (command->detached)
        command->port = -1;
    return true;
}

static bool pump_stdin(struct command *command, struct port *port) {
    bool progress = false;
    if (command->held_length > 0 && command->stdin_ready) {
        uint32_t written;
        command_write_stdin(command, command->held + command->held_at, command->held_length, &written);
        command->stdin_taken += written;
        command->held_at += written;
        command->held_length = command->stdin_fd < 0 ? 0 : command->held_length - written;
        if (command->held_length == 0) {
            command->held_at = 0;
            if (command->stdin_eof)
                command_close_stdin(command);
        }
        progress = written > 0;
    }
    if (command->stdin_taken >= STDIN_GRANT && !command->stdin_eof && !command->ended && port != NULL &&
        port_has_small_room(port)) {
        uint8_t payload[WIRE_FIELD_HEADER + 4];
        struct wire_writer writer = {.buffer = payload, .capacity = sizeof payload};
        wire_put_number(&writer, 1, 4, command->stdin_taken);
        port_send(port, M_STDIN_CREDIT, command->stream, payload, writer.length);
        command->stdin_allowed += command->stdin_taken;
        command->stdin_taken = 0;
        progress = true;
    }
    return progress;
}

static bool pump_output(struct command *command, struct port *port, int which) {
    static uint8_t chunk[PORT_DATA_CHUNK];
    struct output *output = &command->output[which];
    if (output->fd < 0 || !output->ready)
        return false;
    uint64_t most = sizeof chunk;
    if (output->left < most)
        most = output->left;
    if (port != NULL) {
        if (command->starting || !port_has_data_room(port) || command->credit == 0)
            return false;
        if (command->credit < most)
            most = command->credit;
    }
    ssize_t count = read(output->fd, chunk, most);
    if (count > 0) {
        if (port != NULL) {
            port_send(port, which == 0 ? M_STDOUT : M_STDERR, command->stream, chunk, (uint32_t)count);
            command->credit -= (uint64_t)count;
        }
        if (output->left != NOT_ENDED && (output->left -= (uint32_t)count) == 0)
            command_release_output(command, which);
        return true;
    }
    if (count < 0 && errno == EINTR)
        return true;
    if (count < 0 && errno == EAGAIN && !command->ended) {
        output->ready = false;
        return false;
    }
    if (count < 0 && errno == EAGAIN)
        command_release_output(command, which);
    else
        command_close_output(command, which);
    return true;
}

static bool pump_end(struct command *command, struct port *port) {
    if (!command->ended || command->starting || command->output[0].fd >= 0 || command->output[1].fd >= 0)
        return false;
    if (port != NULL) {
        if (!port_has_small_room(port))
            return false;
        uint8_t payload[3 * (WIRE_FIELD_HEADER + 4)];
        struct wire_writer writer = {.buffer = payload, .capacity = sizeof payload};
        if (WIFSIGNALED(command->wait_status))
            wire_put_number(&writer, 2, 4, (uint32_t)WTERMSIG(command->wait_status));
        else
            wire_put_number(&writer, 1, 4, (uint32_t)WEXITSTATUS(command->wait_status));
        if (command->timed_out)
            wire_put_number(&writer, 3, 1, 1);
        port_send(port, M_EXIT, command->stream, payload, writer.length);
    }
    if (command->is_main && !command->refused)
        main_process_is_over(command->wait_status);
    command_free(command);
    return true;
}

bool commands_pump(void) {
    bool progress = false;
    int count = commands_used;
    for (int turn = 0; turn < count; turn++) {
        struct command *command = &commands[(first_turn + turn) % count];
        if (command->pid == 0)
            continue;
        struct port *port = command->port >= 0 ? port_at(command->port) : NULL;
        progress |= pump_start(command, port);
        port = command->port >= 0 ? port_at(command->port) : NULL;
        progress |= pump_stdin(command, port);
        progress |= pump_output(command, port, 0);
        progress |= pump_output(command, port, 1);
        progress |= pump_end(command, port);
    }
    if (progress && count > 0)
        first_turn = (first_turn + 1) % count; /* so that no command always comes first when room is short */
    return progress;
}
