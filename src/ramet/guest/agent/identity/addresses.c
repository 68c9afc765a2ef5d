/* Known until the kernel says that one has come or gone: in an emulated fork looking takes 2 ms, because the code for
 * it runs there for the first time, and getifaddrs(3) took 19. Looked up by ioctl(2) and in /proc/net/if_inet6. */
#include "identity/addresses.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop/events.h"
#include "loop/kernel.h"
#include "loop/netlink.h"

#define IF_INET6 "/proc/net/if_inet6"
#define ADDRESSES_MAX 16
#define ENTRIES_MAX 64 /* with the loopback's */
#define SIX_DIGITS 32

static int news = -1, four = -1, six = -1;
static bool known;
static int count;
static char texts[ADDRESSES_MAX][INET6_ADDRSTRLEN];
static union {
    struct ifreq entries[ENTRIES_MAX];
    char text[ENTRIES_MAX * 64];
} found;

void addresses_init(void) {
    news = four = six = -1;
    known = false;
}

void addresses_unshare(void) {
    if (four >= 0 && !known)
        unshare(&found);
}

void addresses_event(void) {
    char message[1];
    known = false;
    while (recv(news, message, sizeof message, MSG_TRUNC) >= 0 || errno == ENOBUFS)
        ; /* what they say is looked up when somebody asks */
}

static bool is_loopback(const char *name) {
    struct ifreq request = {0};
    if (strncmp(name, "lo", 2) == 0 && (name[2] == '\0' || name[2] == ':'))
        return true; /* the only one there is, unless somebody has renamed it */
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    return ioctl(four, SIOCGIFFLAGS, &request) == 0 && (request.ifr_flags & IFF_LOOPBACK);
}

static void add(int family, const void *address) {
    if (count < ADDRESSES_MAX && inet_ntop(family, address, texts[count], sizeof texts[count]) != NULL)
        count++;
}

static void add_four(void) {
    struct ifreq *entries = found.entries;
    struct ifconf request = {.ifc_len = sizeof found.entries, .ifc_req = entries};
    if (ioctl(four, SIOCGIFCONF, &request) < 0)
        return;
    for (size_t i = 0; i < (size_t)request.ifc_len / sizeof *entries; i++) {
        entries[i].ifr_name[IFNAMSIZ - 1] = '\0';
        if (!is_loopback(entries[i].ifr_name))
            add(AF_INET, &((struct sockaddr_in *)(void *)&entries[i].ifr_addr)->sin_addr);
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

static void add_six(void) {
    char *text = found.text, name[IFNAMSIZ];
    struct in6_addr address;
    ssize_t length = pread(six, text, sizeof found.text - 1, 0);
    if (length <= 0)
        return;
    text[length] = '\0';
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = '\0';
        if (read_six(line, &address, name) && !IN6_IS_ADDR_LINKLOCAL(&address) && !is_loopback(name))
            add(AF_INET6, &address);
    }
}

static void look(void) {
    count = 0;
    if (four < 0)
        four = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (four >= 0)
        add_four();
    if (six < 0)
        six = open(IF_INET6, O_RDONLY | O_CLOEXEC);
    if (six >= 0)
        add_six();
}

void addresses_put(struct wire_writer *answer, uint8_t tag) {
    if (!known) {
        if (news < 0) /* before one looks: what changes meanwhile is looked up the next time */
            news = netlink_watch(KERNEL_NETLINK_ROUTE, KERNEL_RTMGRP_IPV4_IFADDR | KERNEL_RTMGRP_IPV6_IFADDR,
                                 E_ADDRESSES);
        known = news >= 0;
        look();
    }
    for (int i = 0; i < count; i++)
        wire_put(answer, tag, texts[i], (uint32_t)strlen(texts[i]));
}
