#include "session.h"

#include "command.h"
#include "identity.h"
#include "machine.h"
#include "link/message.h"

#define FRAMES_A_TURN 8u

static enum shutdown_wish wish;

enum shutdown_wish session_shutdown_wish(void) { return wish; }

void session_hang_up(struct connection *connection) {
    connection->in_session = false;
    commands_orphan(connection);
}

static void hello(struct connection *connection, const struct wire_frame *frame, struct wire_writer *writer) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    const uint8_t *nonce = NULL;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1 && field.length == NONCE_BYTES)
            nonce = field.value;
    if (more < 0 || nonce == NULL || frame->stream != 0)
        return;
    session_hang_up(connection);
    connection_drop_output(connection);
    connection->in_session = true;
    wire_put(writer, 1, nonce, NONCE_BYTES);
    wire_put_number(writer, 2, 2, PROTOCOL_VERSION);
    wire_put(writer, 3, AGENT_VERSION, sizeof AGENT_VERSION - 1);
    wire_put_number(writer, 4, 8, identity_generation());
    wire_put_number(writer, 5, 2, CONNECTIONS_MAX);
    connection_send_fields(connection, M_WELCOME, 0, writer);
}

static void ping(struct connection *connection, const struct wire_frame *frame, struct wire_writer *writer) {
    if (frame->length > PING_MAX) {
        connection_send_error(connection, frame->stream, E_SIZE, "PING is too long");
        return;
    }
    wire_put(writer, 1, frame->payload, frame->length);
    wire_put_number(writer, 2, 8, machine_monotonic_ns());
    wire_put_number(writer, 3, 8, identity_realtime_ns());
    connection_send_fields(connection, M_PONG, frame->stream, writer);
}

static void identity(struct connection *connection, const struct wire_frame *frame, struct wire_writer *writer) {
    uint64_t before = identity_generation();
    if (!identity_apply(frame, writer)) {
        connection_send_error(connection, frame->stream, E_BAD_MESSAGE, "malformed or missing fields: Bad message");
        return;
    }
    if (identity_generation() != before)
        commands_orphan_all_but(connection);
    connection_send_fields(connection, M_IDENTITY_DONE, frame->stream, writer);
}

static void set_clock(struct connection *connection, const struct wire_frame *frame, struct wire_writer *writer) {
    if (!identity_set_clock(frame, writer)) {
        connection_send_error(connection, frame->stream, E_BAD_MESSAGE, "Bad message");
        return;
    }
    connection_send_fields(connection, M_CLOCK_DONE, frame->stream, writer);
}

static void shutdown_guest(struct connection *connection, const struct wire_frame *frame) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    uint64_t mode;
    bool good = false;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1)
            good = wire_number(&field, 1, &mode) && mode <= 1;
    if (more < 0 || !good) {
        connection_send_error(connection, frame->stream, E_INVALID, "not a mode of SHUTDOWN");
        return;
    }
    wish = mode == 0 ? POWER_OFF : REBOOT;
    connection_send(connection, M_SHUTDOWN_DONE, frame->stream, NULL, 0);
}

static void answer(struct connection *connection, const struct wire_frame *frame) {
    uint8_t payload[REPLY_MAX];
    struct wire_writer writer = {.buffer = payload, .capacity = sizeof payload};
    if (frame->type == M_HELLO) {
        hello(connection, frame, &writer);
        return;
    }
    if (!connection->in_session)
        return;
    switch (frame->type) {
    case M_PING:
        ping(connection, frame, &writer);
        break;
    case M_EXEC:
        command_exec(connection, frame);
        break;
    case M_STDIN:
        command_stdin(connection, frame);
        break;
    case M_STDIN_EOF:
        break; /* none of the commands reads stdin */
    case M_SIGNAL:
        command_signal(connection, frame);
        break;
    case M_CREDIT:
        command_credit(connection, frame);
        break;
    case M_IDENTITY:
        identity(connection, frame, &writer);
        break;
    case M_CLOCK:
        set_clock(connection, frame, &writer);
        break;
    case M_LIST:
        commands_list(&writer);
        connection_send_fields(connection, M_LIST_DONE, frame->stream, &writer);
        break;
    case M_SHUTDOWN:
        shutdown_guest(connection, frame);
        break;
    default:
        connection_send_error(connection, frame->stream, E_NO_CALL, "this agent doesn't know that request");
    }
}

bool session_work(struct connection *connection) {
    bool any = false;
    for (unsigned i = 0; i < FRAMES_A_TURN && wish == STAY; i++) {
        struct wire_frame frame;
        if (!connection->open || connection->in_at == connection->in_length ||
            !connection_has_reply_room(connection))
            break;
        any = true;
        if (connection_frame(connection, &frame))
            answer(connection, &frame);
    }
    return any;
}
