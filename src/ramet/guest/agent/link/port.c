#include "link/port.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "link/message.h"
#include "loop/events.h"

static struct port ports[PORTS_MAX];

void ports_init(void) {
    for (int i = 0; i < PORTS_MAX; i++) {
        ports[i].fd = -1;
        ports[i].in_session = ports[i].resumable = false;
        ports[i].away_until_ns = 0;
    }
}

void ports_unshare(void) {
    for (int i = 0; i < PORTS_MAX; i++) {
        struct port *port = &ports[i];
        if (port->fd < 0 || port->received == 0)
            continue; /* it has carried nothing: its pages aren't there */
        unshare(port);
        unshare(port->in);
        unshare(port->frame);
        unshare(port->out);
    }
}

struct port *port_at(int index) { return &ports[index]; }

int port_index(const struct port *port) { return (int)(port - ports); }

int ports_open_count(void) {
    int count = 0;
    for (int i = 0; i < PORTS_MAX; i++)
        count += ports[i].fd >= 0;
    return count;
}

void port_event(struct port *port, uint32_t poll_mask) {
    if (poll_mask & (EPOLLIN | EPOLLHUP | EPOLLRDHUP | EPOLLERR))
        port->readable = true;
    if (poll_mask & EPOLLOUT)
        port->writable = true;
    port->heard = false;
    /* Nobody will take it, and it may be what keeps us from reading on. A vsock connection that ended because the VMM
     * saved its state reports an error and no end. A virtio-serial port whose host's side hasn't come yet keeps it: that
     * it comes is told by a separate queue, and HELLO may overtake it. */
    if (!(poll_mask & (EPOLLHUP | EPOLLERR)))
        port->met = true;
    else if (port->met)
        port_drop_output(port);
}

/* Reads into an empty input buffer. False when there is nothing to read for now. */
static bool refill(struct port *port, void (*hang_up)(struct port *)) {
    if (!port->readable)
        return false;
    ssize_t count = read(port->fd, port->in, sizeof port->in);
    if (count > 0) {
        port->in_at = 0;
        port->in_length = (uint32_t)count;
        port->heard = true;
        return true;
    }
    if (count < 0 && errno == EINTR)
        return true;
    port->readable = false;
    if (count < 0 && errno == EAGAIN)
        return false;
    /* What was just read came before the word that there is somebody: this isn't its end. An event will tell that he is
     * there, or that he has gone again. */
    if (count == 0 && !port->met && port->heard)
        return false;
    port->met = port->number < 0;
    hang_up(port);
    port_drop_output(port);
    /* End of file on a virtio port means that the host's side is away: it will come again. A connection won't. */
    if (count < 0 || port->number < 0) {
        close(port->fd);
        port->fd = -1;
    }
    return false;
}

bool port_receive(struct port *port, void (*handle)(struct port *, struct wire_frame *),
                  void (*hang_up)(struct port *)) {
    bool progress = false;
    while (port->fd >= 0 && port_has_reply_room(port)) {
        if (port->in_at == port->in_length) {
            if (progress || !refill(port, hang_up)) /* one buffer a turn: the other ports wait too */
                return progress;
        }
        progress = true;
        struct wire_frame frame;
        bool complete;
        port->in_at += (uint32_t)wire_decode(&port->decoder, port->in + port->in_at,
                                             port->in_length - port->in_at, &frame, &complete);
        if (complete)
            handle(port, &frame);
    }
    return progress;
}

/* Octets from here on are still needed. */
static uint32_t kept_at(const struct port *port) { return port->resumable ? port->out_kept : port->out_at; }

/* Whenever possible: a fork pays for every page of the buffer that it touches. */
static void begin_at_front(struct port *port) {
    if (port->out_at == port->out_length && kept_at(port) == port->out_length)
        port_forget_output(port);
}

bool port_flush(struct port *port) {
    bool progress = false;
    while (port->fd >= 0 && port->writable && port->out_at < port->out_length) {
        ssize_t count = write(port->fd, port->out + port->out_at, port->out_length - port->out_at);
        if (count > 0) {
            port->out_at += (uint32_t)count;
            progress = true;
        } else if (count < 0 && errno == EAGAIN) {
            port->writable = false;
        } else if (count == 0 || errno != EINTR) {
            port_drop_output(port);
        }
    }
    begin_at_front(port);
    return progress;
}

void port_drop_output(struct port *port) {
    port->out_at = port->out_length;
    begin_at_front(port);
}

void port_forget_output(struct port *port) { port->out_kept = port->out_at = port->out_length = 0; }

static uint32_t room(const struct port *port) { return PORT_OUT_BYTES - (port->out_length - port->out_at); }

/* What isn't acknowledged makes commands wait, and never a request: the acknowledgement may be behind it. */
static uint32_t room_beside_kept(const struct port *port) {
    return PORT_OUT_BYTES - (port->out_length - kept_at(port));
}

bool port_has_reply_room(const struct port *port) { return room(port) >= WIRE_STUFFED_MAX(WIRE_PAYLOAD_MAX); }

bool port_has_small_room(const struct port *port) { return room_beside_kept(port) >= WIRE_STUFFED_MAX(1024u); }

bool port_has_data_room(const struct port *port) {
    return room(port) >= 2 * WIRE_STUFFED_MAX(WIRE_PAYLOAD_MAX) + WIRE_STUFFED_MAX(PORT_DATA_CHUNK) &&
           room_beside_kept(port) >= WIRE_STUFFED_MAX(WIRE_PAYLOAD_MAX) + WIRE_STUFFED_MAX(PORT_DATA_CHUNK);
}

void port_send(struct port *port, uint8_t type, uint32_t stream, const void *payload, uint32_t length) {
    uint32_t most = WIRE_STUFFED_MAX(length);
    if ((port->fd < 0 && port->away_until_ns == 0) || room(port) < most)
        return;
    if (room_beside_kept(port) < most)
        port->resumable = false; /* its client asks and asks and acknowledges nothing: it can't have both */
    if (PORT_OUT_BYTES - port->out_length < most) {
        uint32_t start = kept_at(port);
        memmove(port->out, port->out + start, port->out_length - start);
        port->out_length -= start;
        port->out_at -= start;
        port->out_kept = 0;
    }
    port->out_length += (uint32_t)wire_encode(port->out + port->out_length, type, stream, payload, length);
}

void port_send_error(struct port *port, uint32_t stream, int error, const char *text) {
    port_send_start_error(port, stream, error, STEP_NONE, text);
}

void port_send_start_error(struct port *port, uint32_t stream, int error, enum start_step step, const char *text) {
    uint8_t payload[3 * WIRE_FIELD_HEADER + 5 + ERROR_TEXT_MAX];
    struct wire_writer writer = {.buffer = payload, .capacity = sizeof payload};
    size_t length = strlen(text);
    wire_put_number(&writer, 1, 4, (uint32_t)error);
    wire_put(&writer, 2, text, (uint32_t)(length < ERROR_TEXT_MAX ? length : ERROR_TEXT_MAX));
    if (step != STEP_NONE)
        wire_put_number(&writer, 3, 1, step);
    port_send(port, M_ERROR, stream, payload, writer.length);
}
