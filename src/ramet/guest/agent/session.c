#include "session.h"

#include <errno.h>
#include <string.h>

#include "exec/command.h"
#include "identity/identity.h"
#include "link/message.h"
#include "link/resume.h"
#include "loop/events.h"

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

void session_forget_all_but(const struct port *own) {
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

void session_hello(struct port *port, const struct wire_frame *frame, struct wire_writer *writer) {
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

void session_acknowledge(struct port *port, const struct wire_frame *frame, struct wire_writer *writer) {
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
    port_send(port, M_ACKED, frame->stream, writer->buffer, writer->length);
}
