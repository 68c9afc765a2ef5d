/* The ways to the host: virtio-serial ports, connections over vsock or to a UNIX socket. */
#ifndef RAMET_TRANSPORTS_H
#define RAMET_TRANSPORTS_H

#include "link/port.h"

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

#endif
