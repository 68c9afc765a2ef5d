/* What root in a guest can do to its agent. The agent is PID 1 and holds the ports, so it can't be killed and they
 * can't be opened twice; but root may trace it, and take descriptors out of it (pidfd_getfd(2)).
 *
 *   evil freeze          stops the agent for good
 *   evil flood|garbage   writes to the ports without end, between what the agent writes
 *   evil eat             reads away what the host sends
 *   evil serve MODE      freezes the agent and answers in its place: mute, liar, breach, flood
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "link/message.h"
#include "link/wire.h"

enum { SEIZE = 0x4206, INTERRUPT = 0x4207, FDS = 64, PORTS = 16 }; /* linux/ptrace.h */

static int ports[PORTS];
static int port_count;

static void fail(const char *what) {
    fprintf(stderr, "evil failed: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void freeze(void) {
    int status;
    if (ptrace(SEIZE, 1, 0, 0) < 0 || ptrace(INTERRUPT, 1, 0, 0) < 0)
        fail("ptrace");
    while (waitpid(1, &status, __WALL) < 0 && errno == EINTR)
        ;
}

static void take_ports(void) {
    int agent = (int)syscall(SYS_pidfd_open, 1, 0);
    if (agent < 0)
        fail("pidfd_open");
    for (int fd = 0; fd < FDS && port_count < PORTS; fd++) {
        char link[64], target[64];
        snprintf(link, sizeof link, "/proc/1/fd/%d", fd);
        ssize_t length = readlink(link, target, sizeof target - 1);
        if (length < 0 || (target[length] = '\0', strncmp(target, "/dev/vport", 10) != 0))
            continue;
        int port = (int)syscall(SYS_pidfd_getfd, agent, fd, 0);
        if (port < 0)
            fail("pidfd_getfd");
        ports[port_count++] = port;
    }
    if (port_count == 0) {
        errno = ENODEV;
        fail("no ports");
    }
}

static void wait_for_any(short events) {
    struct pollfd polled[PORTS];
    for (int i = 0; i < port_count; i++)
        polled[i] = (struct pollfd){.fd = ports[i], .events = events};
    poll(polled, (nfds_t)port_count, 100);
}

static void write_for_ever(int garbage) {
    static uint8_t data[32768];
    uint32_t state = 1;
    for (;;) {
        for (size_t i = 0; garbage && i < sizeof data; i++) {
            state = state * 1664525u + 1013904223u;
            data[i] = i % 40 == 0 ? 0x7e : (uint8_t)(state >> 24);
        }
        ssize_t written = 0;
        for (int i = 0; i < port_count; i++)
            written |= write(ports[i], data, sizeof data) > 0;
        if (!written)
            wait_for_any(POLLOUT);
    }
}

static void read_for_ever(void) {
    static uint8_t data[65536];
    for (;;) {
        for (int i = 0; i < port_count; i++)
            while (read(ports[i], data, sizeof data) > 0)
                ;
    }
}

/* --- in the agent's place --------------------------------------------------------------------------------- */

static uint8_t out[WIRE_STUFFED_MAX(WIRE_PAYLOAD_MAX)];

static void put_all(int port, const uint8_t *data, size_t length) {
    for (int tries = 0; length > 0 && tries < 1000; tries++) {
        ssize_t count = write(port, data, length < 32768 ? length : 32768);
        if (count > 0) {
            data += count;
            length -= (size_t)count;
            tries = 0;
        } else {
            usleep(1000);
        }
    }
}

static void say(int port, uint8_t type, uint32_t stream, const void *payload, uint32_t length) {
    put_all(port, out, wire_encode(out, type, stream, payload, length));
}

static void welcome(int port, const struct wire_frame *hello) {
    uint8_t payload[128];
    struct wire_writer writer = {.buffer = payload, .capacity = sizeof payload};
    wire_put(&writer, 1, hello->payload + WIRE_FIELD_HEADER, NONCE_BYTES);
    wire_put_number(&writer, 2, 2, PROTOCOL_VERSION);
    wire_put(&writer, 3, "evil", 4);
    wire_put_number(&writer, 4, 8, 0);
    wire_put_number(&writer, 5, 2, 8);
    say(port, M_WELCOME, 0, payload, writer.length);
}

/* Somebody else's identity, word for word what was asked for but the name. */
static void lie(int port, const struct wire_frame *identity) {
    uint8_t payload[512];
    struct wire_writer writer = {.buffer = payload, .capacity = sizeof payload};
    struct wire_reader reader = {identity->payload, identity->payload + identity->length};
    struct wire_field field, clock = {0};
    while (wire_next(&reader, &field) > 0) {
        if (field.tag == 1)
            wire_put(&writer, 1, field.value, field.length);
        else if (field.tag == 3)
            clock = field;
        else if (field.tag == 5)
            wire_put(&writer, 4, field.value, field.length);
    }
    wire_put(&writer, 2, "0123456789abcdef", 16);
    wire_put(&writer, 3, "somebody-else", 13);
    wire_put(&writer, 5, clock.value, clock.length);
    say(port, M_IDENTITY_DONE, identity->stream, payload, writer.length);
}

static void answer(int port, const struct wire_frame *frame, const char *mode) {
    static uint8_t zeros[65536];
    if (frame->type == M_HELLO)
        welcome(port, frame);
    else if (strcmp(mode, "liar") == 0 && frame->type == M_IDENTITY)
        lie(port, frame);
    else if (strcmp(mode, "breach") == 0)
        for (int i = 0; i < 8; i++)
            say(port, M_STDOUT, frame->stream, zeros, sizeof zeros);
    else if (strcmp(mode, "flood") == 0)
        for (uint32_t i = 0; i < 100000; i++)
            say(port, M_STDOUT, frame->stream + 1000, zeros, 1);
}

static void serve(const char *mode) {
    static struct wire_decoder decoders[PORTS];
    static uint8_t frames[PORTS][WIRE_FRAME_MAX + 1], in[65536];
    for (int i = 0; i < port_count; i++)
        wire_decoder_init(&decoders[i], frames[i]);
    for (;;) {
        for (int i = 0; i < port_count; i++) {
            ssize_t count = read(ports[i], in, sizeof in);
            for (size_t at = 0; count > 0 && at < (size_t)count;) {
                struct wire_frame frame;
                bool complete;
                at += wire_decode(&decoders[i], in + at, (size_t)count - at, &frame, &complete);
                if (complete)
                    answer(ports[i], &frame, mode);
            }
        }
        usleep(1000);
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "freeze") == 0) {
        freeze();
        for (;;)
            pause();
    }
    take_ports();
    if (strcmp(what, "flood") == 0 || strcmp(what, "garbage") == 0) {
        write_for_ever(what[0] == 'g');
    } else if (strcmp(what, "eat") == 0) {
        read_for_ever();
    } else if (strcmp(what, "serve") == 0 && argc == 3) {
        freeze();
        serve(argv[2]);
    }
    return 2;
}
