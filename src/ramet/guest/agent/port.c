#include "port.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "events.h"
#include "kernel.h"
#include "message.h"
#include "netlink.h"

#define CLASS_DIRECTORY "/sys/class/virtio-ports"
#define NAME_PREFIX "ramet.agent."
#define VSOCK_DEVICE "/dev/vsock" /* it is there from before the family is until after it is gone */
#define VSOCK_PORT 1024u

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

static bool port_open(int fd, int number) {
    for (int i = 0; ports_open_count() < PORTS_OPEN_MAX && i < PORTS_MAX; i++) {
        struct port *port = &ports[i];
        if (port->fd >= 0 || port->away_until_ns != 0)
            continue;
        if (events_watch(fd, E_PORT, (uint32_t)i, EPOLLIN | EPOLLOUT | EPOLLRDHUP) < 0)
            return false;
        port->fd = fd;
        port->number = number;
        port->readable = port->writable = true;
        port->met = number < 0;
        port->heard = false;
        port->in_session = port->resumable = false;
        port->in_at = port->in_length = 0;
        port_forget_output(port);
        wire_decoder_init(&port->decoder, port->frame);
        return true;
    }
    return false;
}

static int port_number(const char *device) {
    char path[sizeof(CLASS_DIRECTORY) + 256 + sizeof("/name")], name[64];
    snprintf(path, sizeof path, CLASS_DIRECTORY "/%s/name", device);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1; /* the driver learns the name a moment after the device, and tells by another uevent */
    ssize_t length = read(fd, name, sizeof name - 1);
    close(fd);
    if (length <= (ssize_t)strlen(NAME_PREFIX))
        return -1;
    name[length] = '\0';
    if (strncmp(name, NAME_PREFIX, strlen(NAME_PREFIX)) != 0)
        return -1;
    char *end;
    long number = strtol(name + strlen(NAME_PREFIX), &end, 10);
    return (*end == '\n' || *end == '\0') && number >= 0 && number < 1000 ? (int)number : -1;
}

static bool is_open(int number) {
    for (int i = 0; i < PORTS_MAX; i++)
        if (ports[i].fd >= 0 && ports[i].number == number)
            return true;
    return false;
}

int ports_scan(void) {
    DIR *directory = opendir(CLASS_DIRECTORY);
    if (directory == NULL)
        return 0;
    struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) {
        int number = entry->d_name[0] == '.' ? -1 : port_number(entry->d_name);
        if (number < 0 || is_open(number))
            continue;
        char path[sizeof("/dev/") + 256];
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0 && !port_open(fd, number))
            close(fd);
    }
    closedir(directory);
    return ports_open_count();
}

int ports_watch_uevents(void) {
    return netlink_watch(KERNEL_NETLINK_KOBJECT_UEVENT, 1, E_UEVENT); /* 1: the kernel's own events */
}

bool ports_uevent(int fd) {
    static char text[4096];
    bool found = false;
    for (;;) {
        ssize_t length = recv(fd, text, sizeof text, 0);
        if (length < 0 && errno == ENOBUFS) {
            found = true; /* some were lost: look for oneself */
            continue;
        }
        if (length < 0)
            return found;
        found = found || memmem(text, (size_t)length, "virtio-ports", strlen("virtio-ports")) != NULL ||
                memmem(text, (size_t)length, "vsock", strlen("vsock")) != NULL;
    }
}

static int listen_at(const struct sockaddr *address, socklen_t length) {
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (bind(fd, address, length) < 0 || listen(fd, PORTS_MAX) < 0 ||
        events_watch(fd, E_LISTENER, 0, EPOLLIN) < 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int ports_listen(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, path);
    return listen_at((struct sockaddr *)&address, sizeof address);
}

int ports_listen_vsock(void) {
    struct kernel_sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_port = VSOCK_PORT, .svm_cid = KERNEL_VMADDR_CID_ANY};
    /* Asked for a family that it lacks, the kernel runs modprobe and waits for it: once for each time that we look. */
    if (access(VSOCK_DEVICE, F_OK) < 0)
        return -1;
    return listen_at((struct sockaddr *)&address, sizeof address);
}

static struct port *longest_away(void) {
    struct port *longest = NULL;
    for (int i = 0; i < PORTS_MAX; i++) {
        struct port *port = &ports[i];
        if (port->fd < 0 && port->away_until_ns == 0)
            return NULL; /* a port is free */
        if (port->fd < 0 && (longest == NULL || port->away_until_ns < longest->away_until_ns))
            longest = port;
    }
    return longest;
}

void ports_accept(int listener, void (*give_up)(struct port *)) {
    for (;;) {
        struct kernel_sockaddr_vm peer = {0};
        socklen_t length = sizeof peer;
        int fd = accept4(listener, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        /* Programs of the guest reach our port too, where its kernel has a loopback: they are nobody's host. */
        bool stranger = peer.svm_family == AF_VSOCK && peer.svm_cid != KERNEL_VMADDR_CID_HOST;
        struct port *in_the_way = stranger || ports_open_count() == PORTS_OPEN_MAX ? NULL : longest_away();
        if (in_the_way != NULL)
            give_up(in_the_way);
        if (stranger || !port_open(fd, -1))
            close(fd);
    }
}

void port_event(struct port *port, uint32_t poll_mask) {
    if (poll_mask & (EPOLLIN | EPOLLHUP | EPOLLRDHUP | EPOLLERR))
        port->readable = true;
    if (poll_mask & EPOLLOUT)
        port->writable = true;
    port->heard = false;
    /* Nobody will take it, and it may be what keeps us from reading on. A vsock connection that ended because the VMM
     * saved its state reports an error and no end. A virtio-serial port whose host's side hasn't come yet keeps it: that
     * it comes is told by a queue of its own, and HELLO may overtake it. */
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
