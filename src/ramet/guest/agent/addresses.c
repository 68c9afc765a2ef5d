/* Asked by ioctl(2) and in /proc/net/if_inet6, through descriptors that stay open: in an emulated fork getifaddrs(3),
 * with a netlink socket, two dumps and the memory for them, took 19 of the 51 ms of an identity to say that there are
 * none. */
#include "addresses.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "events.h"

#define IF_INET6 "/proc/net/if_inet6"
#define ADDRESSES_MAX 16
#define ENTRIES_MAX 64 /* with the loopback's */
#define SIX_DIGITS 32

static int four = -1, six = -1;
static union {
    struct ifreq entries[ENTRIES_MAX];
    char text[ENTRIES_MAX * 64];
} found;

void addresses_init(void) { four = six = -1; }

void addresses_unshare(void) {
    if (four >= 0)
        unshare(&found);
}

static bool is_loopback(const char *name) {
    struct ifreq request = {0};
    if (strncmp(name, "lo", 2) == 0 && (name[2] == '\0' || name[2] == ':'))
        return true; /* the only one there is, unless somebody has renamed it */
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    return ioctl(four, SIOCGIFFLAGS, &request) == 0 && (request.ifr_flags & IFF_LOOPBACK);
}

static void put(struct wire_writer *answer, uint8_t tag, int family, const void *address, int *count) {
    char text[INET6_ADDRSTRLEN];
    if (*count == ADDRESSES_MAX || inet_ntop(family, address, text, sizeof text) == NULL)
        return;
    wire_put(answer, tag, text, (uint32_t)strlen(text));
    ++*count;
}

static void put_four(struct wire_writer *answer, uint8_t tag, int *count) {
    struct ifreq *entries = found.entries;
    struct ifconf request = {.ifc_len = sizeof found.entries, .ifc_req = entries};
    if (ioctl(four, SIOCGIFCONF, &request) < 0)
        return;
    for (size_t i = 0; i < (size_t)request.ifc_len / sizeof *entries; i++) {
        entries[i].ifr_name[IFNAMSIZ - 1] = '\0';
        if (!is_loopback(entries[i].ifr_name))
            put(answer, tag, AF_INET, &((struct sockaddr_in *)(void *)&entries[i].ifr_addr)->sin_addr, count);
    }
}

static int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

/* The address as 32 hexadecimal digits, index, prefix length, scope, flags, and the interface's name (the kernel's
 * net/ipv6/addrconf.c, if6_seq_show). */
static bool read_six(const char *line, struct in6_addr *address, char name[IFNAMSIZ]) {
    for (int i = 0; i < SIX_DIGITS; i += 2) {
        int high = digit(line[i]), low = high < 0 ? -1 : digit(line[i + 1]);
        if (low < 0)
            return false;
        address->s6_addr[i / 2] = (uint8_t)(high << 4 | low);
    }
    const char *end = strrchr(line, ' ');
    if (end == NULL || strlen(end + 1) >= IFNAMSIZ)
        return false;
    strcpy(name, end + 1);
    return true;
}

static void put_six(struct wire_writer *answer, uint8_t tag, int *count) {
    char *text = found.text, name[IFNAMSIZ];
    struct in6_addr address;
    ssize_t length = pread(six, text, sizeof found.text - 1, 0);
    if (length <= 0)
        return;
    text[length] = '\0';
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = '\0';
        if (read_six(line, &address, name) && !IN6_IS_ADDR_LINKLOCAL(&address) && !is_loopback(name))
            put(answer, tag, AF_INET6, &address, count);
    }
}

void addresses_put(struct wire_writer *answer, uint8_t tag) {
    int count = 0;
    if (four < 0)
        four = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (four >= 0)
        put_four(answer, tag, &count);
    if (six < 0)
        six = open(IF_INET6, O_RDONLY | O_CLOEXEC);
    if (six >= 0)
        put_six(answer, tag, &count);
}
