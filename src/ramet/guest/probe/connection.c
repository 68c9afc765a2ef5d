#include "connection.h"

#include <string.h>

#include "machine.h"
#include "link/message.h"

/* In the order in which an answer uses them. Pages of the others are never touched. */
struct buffers {
    uint8_t in[IN_BYTES];
    uint8_t out[OUT_BYTES];
    uint8_t frame[WIRE_FRAME_MAX + 1];
} __attribute__((aligned(PAGE_BYTES)));

static struct connection connections[CONNECTIONS_MAX] HOT;
static struct buffers buffers[CONNECTIONS_MAX] BUFFERS;

struct connection *connection_at(unsigned index) { return &connections[index]; }

unsigned connection_index(const struct connection *connection) { return (unsigned)(connection - connections); }

struct connection *connection_find(uint32_t port) {
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        if (connections[i].open && connections[i].port == port)
            return &connections[i];
    return NULL;
}

struct connection *connection_open(uint32_t port) {
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        if (connections[i].open)
            continue;
        connections[i] = (struct connection){.open = true, .port = port, .respond_due = true};
        wire_decoder_init(&connections[i].decoder, buffers[i].frame);
        return &connections[i];
    }
    return NULL;
}

void connection_close(struct connection *connection) { connection->open = false; }

void connection_drop_output(struct connection *connection) { connection->out_at = connection->out_length = 0; }

static struct buffers *of(const struct connection *connection) { return &buffers[connection_index(connection)]; }

bool connection_receive(struct connection *connection, const uint8_t *data, uint32_t count) {
    uint8_t *in = of(connection)->in;
    uint32_t waiting = connection->in_length - connection->in_at;
    if (count > IN_BYTES - waiting)
        return false;
    if (count > IN_BYTES - connection->in_length) {
        memmove(in, in + connection->in_at, waiting);
        connection->in_at = 0;
        connection->in_length = waiting;
    }
    memcpy(in + connection->in_length, data, count);
    connection->in_length += count;
    return true;
}

bool connection_frame(struct connection *connection, struct wire_frame *frame) {
    const uint8_t *in = of(connection)->in;
    bool complete;
    uint32_t count = (uint32_t)wire_decode(&connection->decoder, in + connection->in_at,
                                           connection->in_length - connection->in_at, frame, &complete);
    connection->in_at += count;
    connection->taken += count;
    if (connection->in_at == connection->in_length)
        connection->in_at = connection->in_length = 0; /* begin at the front: a fork pays for each page */
    if (connection->taken - connection->told >= IN_BYTES / 2)
        connection->credit_due = true;
    return complete;
}

uint32_t connection_output(const struct connection *connection, const uint8_t **data, uint32_t limit) {
    uint32_t waiting = connection->out_length - connection->out_at;
    uint32_t under_way = connection->sent - connection->peer_taken;
    uint32_t credit = under_way < connection->peer_space ? connection->peer_space - under_way : 0;
    *data = of(connection)->out + connection->out_at;
    limit = limit < credit ? limit : credit;
    return limit < waiting ? limit : waiting;
}

void connection_sent(struct connection *connection, uint32_t count) {
    connection->sent += count;
    connection->out_at += count;
    if (connection->out_at == connection->out_length)
        connection_drop_output(connection);
}

static uint32_t room(const struct connection *connection) {
    return OUT_BYTES - (connection->out_length - connection->out_at);
}

bool connection_has_reply_room(const struct connection *connection) {
    return room(connection) >= WIRE_STUFFED_MAX(REPLY_MAX);
}

bool connection_has_data_room(const struct connection *connection) {
    return room(connection) >= 2 * WIRE_STUFFED_MAX(REPLY_MAX);
}

void connection_send(struct connection *connection, uint8_t type, uint32_t stream, const void *payload,
                     uint32_t length) {
    uint8_t *out = of(connection)->out;
    if (!connection->open || room(connection) < WIRE_STUFFED_MAX(length))
        return;
    if (OUT_BYTES - connection->out_length < WIRE_STUFFED_MAX(length)) {
        connection->out_length -= connection->out_at;
        memmove(out, out + connection->out_at, connection->out_length);
        connection->out_at = 0;
    }
    connection->out_length +=
        (uint32_t)wire_encode(out + connection->out_length, type, stream, payload, length);
}

void connection_send_fields(struct connection *connection, uint8_t type, uint32_t stream,
                            const struct wire_writer *writer) {
    connection_send(connection, type, stream, writer->buffer, writer->length);
}

void connection_send_number(struct connection *connection, uint8_t type, uint32_t stream, uint32_t number) {
    uint8_t payload[WIRE_FIELD_HEADER + 4];
    struct wire_writer writer = {.buffer = payload, .capacity = sizeof payload};
    wire_put_number(&writer, 1, 4, number);
    connection_send_fields(connection, type, stream, &writer);
}

void connection_send_error(struct connection *connection, uint32_t stream, uint32_t error, const char *text) {
    uint8_t payload[2 * WIRE_FIELD_HEADER + 4 + ERROR_TEXT_MAX];
    struct wire_writer writer = {.buffer = payload, .capacity = sizeof payload};
    size_t length = strlen(text);
    wire_put_number(&writer, 1, 4, error);
    wire_put(&writer, 2, text, (uint32_t)(length < ERROR_TEXT_MAX ? length : ERROR_TEXT_MAX));
    connection_send_fields(connection, M_ERROR, stream, &writer);
}
