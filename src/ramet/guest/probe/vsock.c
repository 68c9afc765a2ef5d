#include "vsock.h"

#include <string.h>

#include "machine.h"
#include "virtio.h"

enum { RECEIVE, TRANSMIT, EVENTS };
enum operation { REQUEST = 1, RESPONSE, RESET, SHUTDOWN, DATA, CREDIT_UPDATE, CREDIT_REQUEST };

#define STREAM 1u
#define PACKETS (RING_SIZE / 2) /* a chain is a header and its data */
#define PACKET_BYTES 1024u      /* small: a fork pays for each page, and most packets hold one request */
#define EVENT_BUFFERS 4u
#define TRANSPORT_RESET 0u

struct header {
    uint64_t from_cid, to_cid;
    uint32_t from_port, to_port, length;
    uint16_t type, operation;
    uint32_t flags, buffer_space, taken;
} __attribute__((packed));

struct packet {
    struct header header;
    uint8_t data[PACKET_BYTES - sizeof(struct header)];
};

static struct ring rings[3] HOT;
static uint32_t events[EVENT_BUFFERS] HOT;
static uint32_t free_packets HOT; /* of `outgoing`, a bit each */
static uint64_t our_cid HOT, host_cid HOT;
static bool after_reset HOT;
static uint32_t unanswered[CONNECTIONS_MAX] HOT; /* ports of packets that `refuse` kept silent about */
static unsigned unanswered_count HOT;
static volatile uint32_t *device;
static struct packet outgoing[PACKETS] BUFFERS __attribute__((aligned(PAGE_BYTES)));
static struct packet incoming[PACKETS] BUFFERS;

static void describe(struct ring *ring, unsigned index, struct packet *packet, uint16_t flags) {
    ring->descriptors[2 * index] = (struct descriptor){
        (uintptr_t)&packet->header, sizeof packet->header, DESCRIPTOR_NEXT | flags, (uint16_t)(2 * index + 1)};
    ring->descriptors[2 * index + 1] =
        (struct descriptor){(uintptr_t)packet->data, sizeof packet->data, flags, 0};
}

bool vsock_init(void) {
    device = virtio_find(VIRTIO_VSOCK);
    if (device == NULL)
        return false;
    for (uint32_t number = 0; number < 3; number++)
        if (!virtio_start_ring(device, number, &rings[number]))
            return false;
    for (uint16_t i = 0; i < PACKETS; i++) {
        describe(&rings[RECEIVE], i, &incoming[i], DESCRIPTOR_WRITE);
        describe(&rings[TRANSMIT], i, &outgoing[i], 0);
        ring_put(&rings[RECEIVE], 2 * i);
        free_packets |= 1u << i;
    }
    for (uint16_t i = 0; i < EVENT_BUFFERS; i++) {
        rings[EVENTS].descriptors[i] =
            (struct descriptor){(uintptr_t)&events[i], sizeof events[i], DESCRIPTOR_WRITE, 0};
        ring_put(&rings[EVENTS], i);
    }
    virtio_ready(device);
    ring_tell(&rings[RECEIVE], device, 1);
    ring_tell(&rings[EVENTS], device, 1);
    return true;
}

/* Sends a packet, with the first `length` octets of `data`. There is a free one, and the host has room for the data. */
static void transmit(struct connection *connection, uint32_t from_port, uint32_t port, enum operation operation,
                     const uint8_t *data, uint32_t length) {
    unsigned index = (unsigned)__builtin_ctz(free_packets);
    struct packet *packet = &outgoing[index];
    free_packets &= ~(1u << index);
    packet->header = (struct header){
        .from_cid = our_cid,
        .to_cid = host_cid,
        .from_port = from_port,
        .to_port = port,
        .length = length,
        .type = STREAM,
        .operation = (uint16_t)operation,
        .buffer_space = IN_BYTES,
        .taken = connection != NULL ? connection->taken : 0,
    };
    if (connection != NULL)
        connection->told = connection->taken;
    memcpy(packet->data, data, length);
    struct descriptor *descriptors = &rings[TRANSMIT].descriptors[2 * index];
    descriptors[0].flags = length > 0 ? DESCRIPTOR_NEXT : 0;
    descriptors[1].length = length;
    ring_put(&rings[TRANSMIT], (uint16_t)(2 * index));
}

static void refuse(const struct header *header) {
    if (header->operation == RESET)
        return;
    if (after_reset && header->operation != REQUEST) {
        /* Of a life before the snapshot? An answer could hit a new connection that has its port by now. */
        if (header->to_port == AGENT_PORT && unanswered_count < CONNECTIONS_MAX)
            unanswered[unanswered_count++] = header->from_port;
        return;
    }
    transmit(NULL, header->to_port, header->from_port, RESET, NULL, 0);
}

/* Once all that the host had sent is taken: a guest that wasn't forked but saved has a host that still knows its old
 * connections, and waits for an answer on them. Ports that are in use again by now have theirs. */
static bool refuse_unanswered(void) {
    bool any = false;
    while (unanswered_count > 0 && free_packets != 0) {
        uint32_t port = unanswered[--unanswered_count];
        if (connection_find(port) == NULL)
            transmit(NULL, AGENT_PORT, port, RESET, NULL, 0);
        any = true;
    }
    return any;
}

static void end(struct connection *connection, void (*hang_up)(struct connection *)) {
    hang_up(connection);
    connection_close(connection);
}

static void take(const struct packet *packet, void (*hang_up)(struct connection *)) {
    const struct header *header = &packet->header;
    our_cid = header->to_cid;
    host_cid = header->from_cid;
    struct connection *connection = header->to_port == AGENT_PORT ? connection_find(header->from_port) : NULL;
    if (header->operation == REQUEST && header->to_port == AGENT_PORT && header->type == STREAM) {
        if (connection != NULL)
            end(connection, hang_up);
        connection = connection_open(header->from_port);
    }
    if (connection == NULL || header->type != STREAM) {
        refuse(header);
        return;
    }
    connection->peer_space = header->buffer_space;
    connection->peer_taken = header->taken;
    switch (header->operation) {
    case REQUEST:
    case CREDIT_UPDATE:
        return;
    case CREDIT_REQUEST:
        connection->credit_due = true;
        return;
    case DATA:
        if (header->length <= sizeof packet->data && connection_receive(connection, packet->data, header->length))
            return;
        break;
    default: /* either side's end is the end of both, as for the agent */
        break;
    }
    end(connection, hang_up);
    refuse(header);
}

/* After a restore the host knows none of the connections. */
static bool take_events(void (*hang_up)(struct connection *)) {
    struct used_element used;
    bool any = false;
    while (ring_take(&rings[EVENTS], &used)) {
        any = true;
        if (events[used.id % EVENT_BUFFERS] == TRANSPORT_RESET) {
            after_reset = true;
            for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
                if (connection_at(i)->open)
                    end(connection_at(i), hang_up);
        }
        ring_put(&rings[EVENTS], (uint16_t)used.id);
    }
    return any;
}

static bool reap(void) {
    struct used_element used;
    bool any = false;
    while (ring_take(&rings[TRANSMIT], &used)) {
        free_packets |= 1u << (used.id / 2 % PACKETS);
        any = true;
    }
    return any;
}

bool vsock_receive(void (*hang_up)(struct connection *)) {
    bool any = reap();
    /* A snapshot may lie between any two packets: so the events are looked at before each. */
    for (unsigned i = 0; i < PACKETS && free_packets != 0; i++) {
        struct used_element used;
        any = take_events(hang_up) || any;
        if (!ring_take(&rings[RECEIVE], &used)) {
            after_reset = false;
            any = refuse_unanswered() || any;
            break;
        }
        any = true;
        if (used.length >= sizeof(struct header))
            take(&incoming[used.id / 2 % PACKETS], hang_up);
        ring_put(&rings[RECEIVE], (uint16_t)used.id);
    }
    return any;
}

static bool send(struct connection *connection) {
    bool any = false;
    while (connection->open && free_packets != 0) {
        const uint8_t *data;
        uint32_t length = connection_output(connection, &data, sizeof outgoing[0].data);
        if (connection->respond_due) {
            transmit(connection, AGENT_PORT, connection->port, RESPONSE, NULL, 0);
            connection->respond_due = false;
        } else if (length > 0) {
            transmit(connection, AGENT_PORT, connection->port, DATA, data, length);
            connection_sent(connection, length);
        } else if (connection->credit_due) {
            transmit(connection, AGENT_PORT, connection->port, CREDIT_UPDATE, NULL, 0);
        } else {
            break;
        }
        connection->credit_due = false; /* every packet tells */
        any = true;
    }
    return any;
}

bool vsock_send(void) {
    static unsigned first HOT;
    bool any = false;
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        any = send(connection_at((first + i) % CONNECTIONS_MAX)) || any;
    first = any ? first + 1 : first; /* so that one who sends a lot doesn't keep the others waiting */
    ring_tell(&rings[TRANSMIT], device, 1);
    ring_tell(&rings[RECEIVE], device, PACKETS / 2);
    ring_tell(&rings[EVENTS], device, 1); /* Firecracker 1.16 holds packets back until it is told of each */
    return any;
}

bool vsock_sent_all(void) {
    reap();
    return free_packets == (1u << PACKETS) - 1;
}
