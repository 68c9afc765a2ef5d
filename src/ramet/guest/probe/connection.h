/* Byte streams to the host, over vsock. Buffers of each, and framing; what the frames mean is session.c's. */
#ifndef PROBE_CONNECTION_H
#define PROBE_CONNECTION_H

#include "link/wire.h"

#define CONNECTIONS_MAX 16u
#define IN_BYTES 8192u /* also the credit that the host has */
#define OUT_BYTES 16384u
#define REPLY_MAX 2048u /* the largest payload that the probe sends */

struct connection {
    bool open, in_session;
    bool respond_due, credit_due; /* packets to be sent */
    uint32_t port;                /* the host's */
    uint32_t in_at, in_length, out_at, out_length;
    uint32_t taken, told;                /* octets of the host's that were consumed, and that it knows were */
    uint32_t sent, peer_taken, peer_space; /* the same the other way, and how large the host's buffer is */
    struct wire_decoder decoder;
};

struct connection *connection_at(unsigned index);
unsigned connection_index(const struct connection *connection);
struct connection *connection_find(uint32_t port);

/* The next free one, ready for use, or NULL. Low ones first: the pages of their buffers were used before. */
struct connection *connection_open(uint32_t port);
void connection_close(struct connection *connection);
void connection_drop_output(struct connection *connection);

/* Takes octets from the host. False when it sends more than it has credit for. */
bool connection_receive(struct connection *connection, const uint8_t *data, uint32_t count);
/* Decodes up to the next whole frame. True when there was one. */
bool connection_frame(struct connection *connection, struct wire_frame *frame);

/* What is to be sent next, at most `limit` octets; how many of them were sent. */
uint32_t connection_output(const struct connection *connection, const uint8_t **data, uint32_t limit);
void connection_sent(struct connection *connection, uint32_t count);

/* Room for any answer; for data, which leaves that room free. */
bool connection_has_reply_room(const struct connection *connection);
bool connection_has_data_room(const struct connection *connection);

/* Queues a frame. The caller has asked for room; a frame without it is dropped. */
void connection_send(struct connection *connection, uint8_t type, uint32_t stream, const void *payload,
                     uint32_t length);
void connection_send_fields(struct connection *connection, uint8_t type, uint32_t stream,
                            const struct wire_writer *writer);
void connection_send_number(struct connection *connection, uint8_t type, uint32_t stream, uint32_t number);
void connection_send_error(struct connection *connection, uint32_t stream, uint32_t error, const char *text);

#endif
