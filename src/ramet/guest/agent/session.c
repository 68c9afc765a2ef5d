#include "session.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "command.h"
#include "events.h"
#include "identity.h"
#include "message.h"

static bool machine_is_ours = true;
static enum shutdown_wish wish = STAY;
static uint8_t answer_buffer[WIRE_PAYLOAD_MAX];

void session_forbid_machine_changes(void) { machine_is_ours = false; }

enum shutdown_wish session_shutdown_wish(void) { return wish; }

void session_unshare(void) {
    unshare(answer_buffer);
    ports_unshare();
    identity_unshare();
}

void session_end(struct port *port) {
    port->in_session = port->resumable = false;
    port->away_until_ns = 0;
    port_forget_output(port); /* it was for this session, perhaps of another life */
    commands_orphan(port_index(port));
}

void session_hang_up(struct port *port) {
    if (port->in_session && port->resumable)
        port->away_until_ns = events_now_ns() + SESSION_GRACE_MS * 1000000ull;
    else
        session_end(port);
}

int sessions_time_out(void) {
    uint64_t now = 0, next = UINT64_MAX;
    for (int i = 0; i < PORTS_MAX; i++) {
        struct port *port = port_at(i);
        if (port->away_until_ns == 0)
            continue;
        if (now == 0)
            now = events_now_ns();
        if (port->away_until_ns <= now)
            session_end(port);
        else if (port->away_until_ns < next)
            next = port->away_until_ns;
    }
    return next == UINT64_MAX ? -1 : (int)((next - now) / 1000000u + 1);
}

/* In a fork the sessions that were there before belong to the parent's clients. */
static void forget_all_but(const struct port *own) {
    for (int i = 0; i < PORTS_MAX; i++) {
        struct port *port = port_at(i);
        if (port == own || !port->in_session)
            continue; /* nothing is written where nobody is: a fork would pay for a page each */
        port->resumable = false;
        if (port->away_until_ns != 0)
            session_end(port);
    }
    commands_orphan_all_but(port_index(own));
}

static struct port *session_named(const uint8_t *token) {
    for (int i = 0; i < PORTS_MAX; i++) {
        struct port *port = port_at(i);
        if (port->in_session && port->resumable && memcmp(port->token, token, TOKEN_BYTES) == 0)
            return port;
    }
    return NULL;
}

static void answer(struct port *port, uint8_t type, uint32_t stream, const struct wire_writer *writer) {
    port_send(port, type, stream, writer->buffer, writer->length);
}

static void hello(struct port *port, const struct wire_frame *frame, struct wire_writer *writer) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    const uint8_t *nonce = NULL, *token = NULL;
    uint64_t count = 0;
    bool resumes = false;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1 && field.length == NONCE_BYTES)
            nonce = field.value;
        else if (field.tag == 3 && field.length == TOKEN_BYTES)
            token = field.value;
        else if (field.tag == 4)
            resumes = wire_number(&field, 8, &count);
    if (more < 0 || nonce == NULL || frame->stream != 0)
        return; /* nobody to answer: without a nonce it is no handshake */
    struct port *named = token != NULL ? session_named(token) : NULL;
    resumes = resumes && named != NULL && named != port && !port->in_session && port->number < 0 &&
              port_take_over(named, port, count);
    if (resumes) {
        port = named;
    } else {
        if (named != NULL)
            session_end(named); /* its client says itself that it goes no further */
        session_end(port);
        port->in_session = true;
        port->received = port->acknowledged = 0;
        /* A virtio-serial port isn't lost when a VM is saved: who comes anew there is somebody else. */
        port->resumable = token != NULL && port->number < 0;
        if (port->resumable)
            memcpy(port->token, token, TOKEN_BYTES);
    }
    wire_put(writer, 1, nonce, NONCE_BYTES);
    wire_put_number(writer, 2, 2, PROTOCOL_VERSION);
    wire_put(writer, 3, AGENT_VERSION, sizeof AGENT_VERSION - 1);
    wire_put_number(writer, 4, 8, identity_generation());
    wire_put_number(writer, 5, 2, (uint64_t)ports_open_count());
    if (port->resumable)
        wire_put_number(writer, 6, 4, SESSION_GRACE_MS);
    if (resumes)
        wire_put_number(writer, 7, 8, port->received);
    port_send_before(port, M_WELCOME, writer);
}

static void acknowledge(struct port *port, const struct wire_frame *frame, struct wire_writer *writer) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    uint64_t count;
    bool good = false;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1)
            good = wire_number(&field, 8, &count);
    if (more < 0 || !good) {
        port_send_error(port, frame->stream, EINVAL, "not a count of frames");
        return;
    }
    port_acknowledge(port, count);
    wire_put_number(writer, 1, 8, port->received);
    answer(port, M_ACKED, frame->stream, writer);
}

static void ping(struct port *port, const struct wire_frame *frame, struct wire_writer *writer) {
    struct timespec real;
    if (frame->length > PING_MAX) {
        port_send_error(port, frame->stream, EMSGSIZE, "PING is too long");
        return;
    }
    clock_gettime(CLOCK_REALTIME, &real);
    wire_put(writer, 1, frame->payload, frame->length);
    wire_put_number(writer, 2, 8, events_now_ns());
    wire_put_number(writer, 3, 8, (uint64_t)real.tv_sec * 1000000000u + (uint64_t)real.tv_nsec);
    answer(port, M_PONG, frame->stream, writer);
}

static void identity(struct port *port, const struct wire_frame *frame, struct wire_writer *writer) {
    const char *step;
    uint64_t before = identity_generation();
    int error = identity_apply(frame, writer, &step);
    if (identity_generation() != before)
        forget_all_but(port);
    if (error == 0) {
        answer(port, M_IDENTITY_DONE, frame->stream, writer);
        return;
    }
    char text[128];
    snprintf(text, sizeof text, "%s: %s", step, strerror(error));
    port_send_error(port, frame->stream, error, text);
}

static void set_clock(struct port *port, const struct wire_frame *frame, struct wire_writer *writer) {
    int error = identity_set_clock(frame, writer);
    if (error == 0)
        answer(port, M_CLOCK_DONE, frame->stream, writer);
    else
        port_send_error(port, frame->stream, error, strerror(error));
}

static void shutdown_guest(struct port *port, const struct wire_frame *frame) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    uint64_t mode;
    bool good = false;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1)
            good = wire_number(&field, 1, &mode) && mode <= 1;
    if (more < 0 || !good) {
        port_send_error(port, frame->stream, EINVAL, "not a mode of SHUTDOWN");
        return;
    }
    wish = mode == 0 ? POWER_OFF : REBOOT;
    port_send(port, M_SHUTDOWN_DONE, frame->stream, NULL, 0);
}

void session_frame(struct port *port, struct wire_frame *frame) {
    struct wire_writer writer = {.buffer = answer_buffer, .capacity = sizeof answer_buffer};
    if (frame->type == M_HELLO) {
        hello(port, frame, &writer);
        return;
    }
    if (!port->in_session)
        return;
    if (frame->type == M_ACK) {
        acknowledge(port, frame, &writer);
        return;
    }
    if (frame->type == M_BYE && frame->stream == 0 && frame->length == 0) {
        session_end(port);
        return;
    }
    port->received++;
    if ((frame->type == M_IDENTITY || frame->type == M_CLOCK || frame->type == M_SHUTDOWN) && !machine_is_ours) {
        port_send_error(port, frame->stream, EPERM, "this agent doesn't own its machine");
        return;
    }
    switch (frame->type) {
    case M_PING:
        ping(port, frame, &writer);
        break;
    case M_EXEC:
        command_exec(port, frame);
        break;
    case M_STDIN:
        command_stdin(port, frame);
        break;
    case M_STDIN_EOF:
        command_stdin_eof(port, frame);
        break;
    case M_SIGNAL:
        command_signal(port, frame);
        break;
    case M_CREDIT:
        command_credit(port, frame);
        break;
    case M_IDENTITY:
        identity(port, frame, &writer);
        break;
    case M_CLOCK:
        set_clock(port, frame, &writer);
        break;
    case M_LIST:
        commands_list(&writer);
        answer(port, M_LIST_DONE, frame->stream, &writer);
        break;
    case M_SHUTDOWN:
        shutdown_guest(port, frame);
        break;
    case M_BYE:
        port_send_error(port, frame->stream, EINVAL, "not a BYE");
        break;
    default:
        port_send_error(port, frame->stream, ENOSYS, "this agent doesn't know that request");
    }
}
