#include "link/transports.h"

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

#include "loop/events.h"
#include "loop/kernel.h"
#include "loop/netlink.h"

#define CLASS_DIRECTORY "/sys/class/virtio-ports"
#define NAME_PREFIX "ramet.agent."
#define VSOCK_DEVICE "/dev/vsock" /* it is there from before the family is until after it is gone */
#define VSOCK_PORT 1024u

static bool port_open(int fd, int number) {
    for (int i = 0; ports_open_count() < PORTS_OPEN_MAX && i < PORTS_MAX; i++) {
        struct port *port = port_at(i);
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
        if (port_at(i)->fd >= 0 && port_at(i)->number == number)
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
        struct port *port = port_at(i);
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
