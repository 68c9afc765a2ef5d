/* Byte streams to the host, as transports.c opens them. Buffers and framing of each.
 *
 * A port's output is bounded. Data of commands stops well before its end, so that answers always find room; when
 * those don't either, no more requests are read.
 *
 * A session that can be resumed keeps what it has sent until its client acknowledges it, in the same buffer: what is
 * before `out_at` was sent, what is behind `out_kept` isn't acknowledged. When its connection ends it keeps its port,
 * "away", without a descriptor, and takes another connection's.
 */
#ifndef RAMET_PORT_H
#define RAMET_PORT_H

#include "link/message.h"
#include "link/wire.h"

#define PORTS_MAX 32 /* with those that are away */
#define PORTS_OPEN_MAX 16
#define PORT_IN_BYTES 16384u
#define PORT_OUT_BYTES (3u * WIRE_STUFFED_MAX(WIRE_PAYLOAD_MAX))
#define PORT_DATA_CHUNK 32768u /* also the most that the virtio-console driver takes in one write(2) */

struct port {
    int fd;     /* -1: free */
    int number; /* N of ramet.agent.N; -1 for a connection */
    bool readable;
    bool writable;
    bool met;   /* its host's side has been there since it was last away; a connection's always was */
    bool heard; /* something was read since the last event */
    bool in_session;
    uint32_t in_at, in_length;
    uint32_t out_kept, out_at, out_length; /* out_kept: in a session that can be resumed only */
    bool resumable;
    uint8_t token[TOKEN_BYTES]; /* the session's name, when it can be resumed */
    uint64_t away_until_ns;     /* 0: not away */
    uint64_t received;          /* counted frames of the session that its client sent */
    uint64_t acknowledged;      /* counted frames to the client before the one at out_kept */
    struct wire_decoder decoder;
    uint8_t in[PORT_IN_BYTES];
    uint8_t frame[WIRE_FRAME_MAX + 1];
    uint8_t out[PORT_OUT_BYTES];
};

void ports_init(void);
/* `unshare` (loop/events.h) for what this writes. */
void ports_unshare(void);
struct port *port_at(int index);
int port_index(const struct port *port);
int ports_open_count(void);

void port_event(struct port *port, uint32_t poll_mask);

/* Hands whole frames to `handle` while there is room for answers. True when it got anything done. `hang_up` is called
 * when the host's side has gone; the port itself stays, unless it was a connection and isn't away. */
bool port_receive(struct port *port, void (*handle)(struct port *, struct wire_frame *),
                  void (*hang_up)(struct port *));
bool port_flush(struct port *port);
/* Nobody takes what waits: it is gone, or kept for when the session is resumed. */
void port_drop_output(struct port *port);
/* It is gone in any case. */
void port_forget_output(struct port *port);

/* Room for an answer (any), for a small one (up to 1 KiB of payload), for a chunk of data. */
bool port_has_reply_room(const struct port *port);
bool port_has_small_room(const struct port *port);
bool port_has_data_room(const struct port *port);

/* Queues a frame. The caller has asked for room; a frame without it is dropped. */
void port_send(struct port *port, uint8_t type, uint32_t stream, const void *payload, uint32_t length);
void port_send_error(struct port *port, uint32_t stream, int error, const char *text);
/* The same in answer to EXEC, with the step that failed. */
void port_send_start_error(struct port *port, uint32_t stream, int error, enum start_step step, const char *text);

#endif
