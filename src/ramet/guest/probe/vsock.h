/* virtio-vsock (Virtual I/O Device 1.2, section 5.10): connections from the host to AGENT_PORT. */
#ifndef PROBE_VSOCK_H
#define PROBE_VSOCK_H

#include "connection.h"

#define AGENT_PORT 1024u

bool vsock_init(void);

/* Takes what the host sent. `hang_up` is called for each connection that ends. Both say whether there was anything. */
bool vsock_receive(void (*hang_up)(struct connection *));
/* Sends what connections have queued, as far as the host takes it. */
bool vsock_send(void);
/* Whether the device has taken everything that was handed to it. */
bool vsock_sent_all(void);

#endif
