#include "loop/netlink.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop/kernel.h"

int netlink_watch(int protocol, uint32_t groups, enum event_kind kind) {
    int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
    struct kernel_sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = groups};
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        events_watch(fd, kind, 0, EPOLLIN) < 0) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}
