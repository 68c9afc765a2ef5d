/* Byte streams to the host: virtio-serial ports, connections over vsock or to a UNIX socket. Buffers and framing of each.
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

#include "message.h"
#include "wire.h"

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
/* As session_unshare. */
void ports_unshare(void);
struct port *port_at(int index);
int port_index(const struct port *port);
int ports_open_count(void);

/* Opens the virtio-serial ports named ramet.agent.N that aren't open yet. Returns how many are open. */
int ports_scan(void);
/* A netlink socket that reports new devices, already watched; -1 with errno. */
int ports_watch_uevents(void);
/* Reads what a uevent socket holds. True when virtio ports or vsock were among it. */
bool ports_uevent(int fd);

/* Listen on a UNIX stream socket, or on vsock for the host; already watched; -1 with errno. ENOENT: no vsock (yet). */
int ports_listen(const char *path);
int ports_listen_vsock(void);
/* Takes who waits. Over vsock only the host is let in, and with every port in use nobody is: the rest are closed. When
 * only ports that are away are left, `give_up` ends the one that has been so for longest. */
void ports_accept(int listener, void (*give_up)(struct port *));

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

/* The session's client has had so many counted frames. */
void port_acknowledge(struct port *port, uint64_t count);
/* `session`, whose client has had so many counted frames, goes on over the connection of `fresh`, whose port is free
 * then. What its client hasn't had is to be sent again, behind what is sent by `port_send_before`. False, and nothing
 * is changed, when not everything is there any more or never was. */
bool port_take_over(struct port *session, struct port *fresh, uint64_t count);
void port_send_before(struct port *port, uint8_t type, const struct wire_writer *writer);

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
