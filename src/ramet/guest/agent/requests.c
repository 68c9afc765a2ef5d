#include "requests.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "exec/command.h"
#include "exec/main_process.h"
#include "identity/identity.h"
#include "identity/trust.h"
#include "init/block.h"
#include "init/grow_disk.h"
#include "init/root.h"
#include "link/message.h"
#include "loop/events.h"
#include "session.h"

static bool machine_is_ours = true;
static enum shutdown_wish wish = STAY;
static uint32_t grace_ms = MAIN_GRACE_MS;
static uint8_t answer_buffer[WIRE_PAYLOAD_MAX];

void requests_forbid_machine_changes(void) { machine_is_ours = false; }

enum shutdown_wish requests_shutdown_wish(void) { return wish; }

uint32_t requests_grace_ms(void) { return grace_ms; }

void requests_unshare(void) {
    unshare(answer_buffer);
    ports_unshare();
    identity_unshare();
}

static struct wire_writer empty_answer(void) {
    return (struct wire_writer){.buffer = answer_buffer, .capacity = sizeof answer_buffer};
}

static void answer(struct port *port, const struct wire_frame *frame, uint8_t type, const struct wire_writer *writer) {
    port_send(port, type, frame->stream, writer->buffer, writer->length);
}

static void ping(struct port *port, struct wire_frame *frame) {
    struct wire_writer writer = empty_answer();
    struct timespec real;
    if (frame->length > PING_MAX) {
        port_send_error(port, frame->stream, EMSGSIZE, "PING is too long");
        return;
    }
    clock_gettime(CLOCK_REALTIME, &real);
    wire_put(&writer, 1, frame->payload, frame->length);
    wire_put_number(&writer, 2, 8, events_now_ns());
    wire_put_number(&writer, 3, 8, (uint64_t)real.tv_sec * 1000000000u + (uint64_t)real.tv_nsec);
    answer(port, frame, M_PONG, &writer);
}

static void identity(struct port *port, struct wire_frame *frame) {
    struct wire_writer writer = empty_answer();
    const char *step;
    uint64_t before = identity_generation();
    int error = identity_apply(frame, &writer, &step);
    if (identity_generation() != before)
        session_forget_all_but(port);
    if (error == 0) {
        answer(port, frame, M_IDENTITY_DONE, &writer);
        return;
    }
    char text[256];
    snprintf(text, sizeof text, "%s: %s%s", step, strerror(error), root_advice(error));
    port_send_error(port, frame->stream, error, text);
}

static void set_clock(struct port *port, struct wire_frame *frame) {
    struct wire_writer writer = empty_answer();
    int error = identity_set_clock(frame, &writer);
    if (error == 0)
        answer(port, frame, M_CLOCK_DONE, &writer);
    else
        port_send_error(port, frame->stream, error, strerror(error));
}

static void shutdown_guest(struct port *port, struct wire_frame *frame) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    uint64_t mode = 0, grace = MAIN_GRACE_MS;
    bool has_mode = false, good = true;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1)
            good = good && (has_mode = wire_number(&field, 1, &mode)) && mode <= 1;
        else if (field.tag == 2)
            good = good && wire_number(&field, 4, &grace);
    if (more < 0 || !has_mode || !good) {
        port_send_error(port, frame->stream, EINVAL, "not a mode of SHUTDOWN");
        return;
    }
    wish = mode == 0 ? POWER_OFF : REBOOT;
    grace_ms = (uint32_t)grace;
    port_send(port, M_SHUTDOWN_DONE, frame->stream, NULL, 0);
}

static void list(struct port *port, struct wire_frame *frame) {
    struct wire_writer writer = empty_answer();
    struct root_room room;
    commands_list(&writer);
    if (root_room(&room)) {
        uint8_t fields[4 * (WIRE_FIELD_HEADER + 8)];
        struct wire_writer root = {.buffer = fields, .capacity = sizeof fields};
        wire_put_number(&root, 1, 1, root_kind());
        wire_put_number(&root, 2, 8, room.bytes);
        wire_put_number(&root, 3, 8, room.free_bytes);
        wire_put_number(&root, 4, 8, room.free_files);
        wire_put(&writer, 2, fields, root.length);
    }
    answer(port, frame, M_LIST_DONE, &writer);
}

static void trust(struct port *port, struct wire_frame *frame) {
    struct wire_writer writer = empty_answer();
    char text[256];
    int error = trust_add(frame, &writer, text, sizeof text);
    if (error == 0)
        answer(port, frame, M_TRUST_DONE, &writer);
    else
        port_send_error(port, frame->stream, error, text);
}

static void grow(struct port *port, struct wire_frame *frame) {
    struct wire_writer writer = empty_answer();
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    struct growth growth;
    char name[BLOCK_SERIAL_MAX] = "", text[256];
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1 && field.length < sizeof name)
            *(char *)mempcpy(name, field.value, field.length) = '\0';
    if (more < 0 || name[0] == '\0') {
        port_send_error(port, frame->stream, EINVAL, "not the name of a disk");
        return;
    }
    int error = grow_disk(name, &growth, text, sizeof text);
    if (error != 0) {
        port_send_error(port, frame->stream, error, text);
        return;
    }
    wire_put_number(&writer, 1, 8, growth.device_bytes);
    wire_put_number(&writer, 2, 8, growth.filesystem_bytes);
    answer(port, frame, M_GROW_DONE, &writer);
}

/* One that is in order ends the session before it is counted. */
static void not_a_bye(struct port *port, struct wire_frame *frame) {
    port_send_error(port, frame->stream, EINVAL, "not a BYE");
}

/* A new request of the protocol is a row here, its number in link/message.h, and a file in the room that serves it. */
static const struct verb {
    void (*serve)(struct port *port, struct wire_frame *frame);
    bool changes_machine;
} verbs[] = {
    [M_PING] = {ping, false},
    [M_EXEC] = {command_exec, false},
    [M_STDIN] = {command_stdin, false},
    [M_STDIN_EOF] = {command_stdin_eof, false},
    [M_SIGNAL] = {command_signal, false},
    [M_CREDIT] = {command_credit, false},
    [M_IDENTITY] = {identity, true},
    [M_LIST] = {list, false},
    [M_SHUTDOWN] = {shutdown_guest, true},
    [M_BYE] = {not_a_bye, false},
    [M_CLOCK] = {set_clock, true},
    [M_TRUST] = {trust, true},
    [M_GROW] = {grow, true},
};

void requests_frame(struct port *port, struct wire_frame *frame) {
    struct wire_writer writer = empty_answer();
    if (frame->type == M_HELLO) {
        session_hello(port, frame, &writer);
        return;
    }
    if (!port->in_session)
        return;
    if (frame->type == M_ACK) {
        session_acknowledge(port, frame, &writer);
        return;
    }
    if (frame->type == M_BYE && frame->stream == 0 && frame->length == 0) {
        session_end(port);
        return;
    }
    port->received++;
    const struct verb *verb = frame->type < sizeof verbs / sizeof *verbs ? &verbs[frame->type] : NULL;
    if (verb == NULL || verb->serve == NULL)
        port_send_error(port, frame->stream, ENOSYS, "this agent doesn't know that request");
    else if (verb->changes_machine && !machine_is_ours)
        port_send_error(port, frame->stream, EPERM, "this agent doesn't own its machine");
    else
        verb->serve(port, frame);
}
