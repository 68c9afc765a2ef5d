#include "link/resume.h"

#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "loop/events.h"
#include "link/message.h"

enum { FLAG = 0x7e };

/* Where the whole frame ends that begins at `from`; 0 when it doesn't end before `limit`. */
static uint32_t frame_end(const struct port *port, uint32_t from, uint32_t limit) {
    if (limit < from + 2)
        return 0;
    const uint8_t *flag = memchr(port->out + from + 1, FLAG, limit - from - 1);
    return flag == NULL ? 0 : (uint32_t)(flag - port->out) + 1;
}

/* What belongs to a connection and not to the session isn't counted, and isn't sent again. Neither of the two types is
 * ever stuffed. */
static bool is_counted(const struct port *port, uint32_t from) {
    uint8_t type = port->out[from + 1];
    return type != M_WELCOME && type != M_ACKED;
}

void port_acknowledge(struct port *port, uint64_t count) {
    if (!port->resumable)
        return;
    uint32_t end;
    while ((end = frame_end(port, port->out_kept, port->out_at)) > 0) {
        bool counted = is_counted(port, port->out_kept);
        if (counted && port->acknowledged >= count)
            break;
        port->acknowledged += counted;
        port->out_kept = end;
    }
    if (port->out_kept == port->out_length)
        port_forget_output(port);
}

bool port_take_over(struct port *session, struct port *fresh, uint64_t count) {
    uint32_t at = session->out_kept, end;
    uint64_t known = session->acknowledged;
    if (count < known)
        return false;
    while (known < count) {
        if ((end = frame_end(session, at, session->out_length)) == 0)
            return false;
        known += is_counted(session, at);
        at = end;
    }
    if (session->out_length - at > PORT_OUT_BYTES - WIRE_STUFFED_MAX(1024u) ||
        events_rewatch(fresh->fd, E_PORT, (uint32_t)port_index(session), EPOLLIN | EPOLLOUT | EPOLLRDHUP) < 0)
        return false;
    if (session->fd >= 0)
        close(session->fd); /* it has ended without our having been told yet */
    session->fd = fresh->fd;
    fresh->fd = -1;
    session->away_until_ns = 0;
    session->readable = session->writable = true;

    session->in_at = 0;
    session->in_length = fresh->in_length - fresh->in_at;
    memcpy(session->in, fresh->in + fresh->in_at, session->in_length);
    fresh->in_at = fresh->in_length = 0;
    wire_decoder_init(&session->decoder, session->decoder.buffer);

    uint32_t length = 0;
    for (; (end = frame_end(session, at, session->out_length)) > 0; at = end)
        if (is_counted(session, at)) {
            memmove(session->out + length, session->out + at, end - at);
            length += end - at;
        }
    session->out_kept = session->out_at = 0;
    session->out_length = length;
    session->acknowledged = count;
    return true;
}

void port_send_before(struct port *port, uint8_t type, const struct wire_writer *writer) {
    static uint8_t frame[WIRE_STUFFED_MAX(1024u)];
    if (WIRE_STUFFED_MAX(writer->length) > sizeof frame)
        return;
    if (port->out_length == 0) { /* nearly always: nothing is moved, and in a fork no page more is written */
        port->out_length = (uint32_t)wire_encode(port->out, type, 0, writer->buffer, writer->length);
        return;
    }
    uint32_t size = (uint32_t)wire_encode(frame, type, 0, writer->buffer, writer->length);
    memmove(port->out + size, port->out, port->out_length);
    memcpy(port->out, frame, size);
    port->out_length += size;
}
