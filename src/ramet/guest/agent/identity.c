#include "identity.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kernel.h"
#include "message.h"

#define RUN_DIRECTORY "/run/ramet"
#define GENERATION_FILE RUN_DIRECTORY "/generation"
#define HOSTS_MAX 16384
#define ADDRESSES_MAX 16
#define OWN_NAME_ADDRESS "127.0.1.1" /* Debian's convention for a host's own name without a fixed address */

struct request {
    uint64_t generation, realtime_ns;
    const uint8_t *seed;
    uint32_t seed_bytes;
    char hostname[HOSTNAME_MAX + 1];
    char machine_id[MACHINE_ID_DIGITS + 1];
};

static uint64_t generation;

uint64_t identity_generation(void) { return generation; }

/* Contents as a text, "" when there is no file. Returns its length or -1. */
static ssize_t read_text(const char *path, char *text, size_t capacity) {
    text[0] = '\0';
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    size_t length = 0;
    ssize_t count;
    while (length < capacity - 1 && (count = read(fd, text + length, capacity - 1 - length)) > 0)
        length += (size_t)count;
    text[length] = '\0';
    close(fd);
    return (ssize_t)length;
}

static int write_text(const char *path, const char *text, size_t length, mode_t mode) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (fd < 0)
        return -1;
    ssize_t count = write(fd, text, length);
    int error = count < 0 ? errno : count != (ssize_t)length ? ENOSPC : 0;
    close(fd);
    errno = error;
    return error ? -1 : 0;
}

/* By rename, so that a reader sees the old or the new; in place where a file is a mount of its own. */
static int replace_text(const char *path, const char *text, mode_t mode) {
    char temporary[64];
    snprintf(temporary, sizeof temporary, "%s.ramet-new", path);
    if (write_text(temporary, text, strlen(text), mode) == 0 && rename(temporary, path) == 0)
        return 0;
    int error = errno;
    unlink(temporary);
    errno = error;
    return error == EBUSY || error == EXDEV ? write_text(path, text, strlen(text), mode) : -1;
}

void identity_init(void) {
    char text[32];
    if (read_text(GENERATION_FILE, text, sizeof text) > 0)
        generation = strtoull(text, NULL, 10);
}

static bool is_hostname(const struct wire_field *field) {
    for (uint32_t i = 0; i < field->length; i++) {
        uint8_t c = field->value[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!letter && !(c >= '0' && c <= '9') && c != '.' && c != '-')
            return false;
    }
    return field->length > 0 && field->length <= HOSTNAME_MAX;
}

static bool is_machine_id(const struct wire_field *field) {
    for (uint32_t i = 0; i < field->length; i++) {
        uint8_t c = field->value[i];
        if (!(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'f'))
            return false;
    }
    return field->length == MACHINE_ID_DIGITS;
}

static bool parse(const struct wire_frame *frame, struct request *request) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    unsigned seen = 0;
    int more;
    while ((more = wire_next(&reader, &field)) > 0) {
        bool good = true;
        switch (field.tag) {
        case 1:
            good = wire_number(&field, 8, &request->generation);
            break;
        case 2:
            good = field.length >= SEED_MIN && field.length <= SEED_MAX;
            request->seed = field.value;
            request->seed_bytes = field.length;
            break;
        case 3:
            good = wire_number(&field, 8, &request->realtime_ns);
            break;
        case 4:
            if ((good = is_hostname(&field)))
                *(char *)mempcpy(request->hostname, field.value, field.length) = '\0';
            break;
        case 5:
            if ((good = is_machine_id(&field)))
                *(char *)mempcpy(request->machine_id, field.value, field.length) = '\0';
            break;
        }
        if (!good)
            return false;
        if (field.tag < 8)
            seen |= 1u << field.tag;
    }
    return more == 0 && (seen & 0x3e) == 0x3e;
}

static int add_entropy(const uint8_t *seed, uint32_t bytes) {
    union {
        struct kernel_rand_pool_info info;
        uint8_t room[sizeof(struct kernel_rand_pool_info) + SEED_MAX];
    } pool = {0};
    pool.info.entropy_count = (int)bytes * 8;
    pool.info.buf_size = (int)bytes;
    memcpy(pool.info.buf, seed, bytes);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = ioctl(fd, KERNEL_RNDADDENTROPY, &pool) < 0 ? -1 : ioctl(fd, KERNEL_RNDRESEEDCRNG);
    int error = errno;
    close(fd);
    memset(&pool, 0, sizeof pool);
    errno = error;
    return result;
}

static int write_hosts(const char *hostname) {
    static char old[HOSTS_MAX];
    static char new[HOSTS_MAX + 128];
    size_t length = 0;
    ssize_t had = read_text("/etc/hosts", old, sizeof old);
    if (had < 0)
        strcpy(old, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    if (had == sizeof old - 1)
        return 0; /* somebody's block list: better an old name in it than a part of it lost */
    for (char *line = old, *next; *line != '\0'; line = next) {
        next = strchrnul(line, '\n');
        next += *next == '\n';
        size_t own = strlen(OWN_NAME_ADDRESS);
        if (strncmp(line, OWN_NAME_ADDRESS, own) == 0 && (line[own] == ' ' || line[own] == '\t'))
            continue;
        memcpy(new + length, line, (size_t)(next - line));
        length += (size_t)(next - line);
    }
    if (length > 0 && new[length - 1] != '\n')
        new[length++] = '\n';
    snprintf(new + length, sizeof new - length, OWN_NAME_ADDRESS "\t%s\n", hostname);
    return replace_text("/etc/hosts", new, 0644);
}

static int write_line(const char *path, const char *line, mode_t mode) {
    char text[HOSTNAME_MAX + 2];
    snprintf(text, sizeof text, "%s\n", line);
    return replace_text(path, text, mode);
}

static void put_addresses(struct wire_writer *answer) {
    struct ifaddrs *all;
    int count = 0;
    if (getifaddrs(&all) < 0)
        return;
    for (int pass = 0; pass < 2; pass++) {
        int family = pass == 0 ? AF_INET : AF_INET6;
        for (struct ifaddrs *each = all; each != NULL && count < ADDRESSES_MAX; each = each->ifa_next) {
            if (each->ifa_addr == NULL || each->ifa_addr->sa_family != family || each->ifa_flags & IFF_LOOPBACK)
                continue;
            const void *address = &((struct sockaddr_in *)(void *)each->ifa_addr)->sin_addr;
            if (family == AF_INET6) {
                const struct in6_addr *six = &((struct sockaddr_in6 *)(void *)each->ifa_addr)->sin6_addr;
                if (IN6_IS_ADDR_LINKLOCAL(six))
                    continue;
                address = six;
            }
            char text[INET6_ADDRSTRLEN];
            if (inet_ntop(family, address, text, sizeof text) != NULL) {
                wire_put(answer, 6, text, (uint32_t)strlen(text));
                count++;
            }
        }
    }
    freeifaddrs(all);
}

static int answer_with(struct wire_writer *answer, const char **step) {
    uint8_t boot_random[16];
    char hostname[HOSTNAME_MAX + 1], machine_id[MACHINE_ID_DIGITS + 2], number[32];
    struct timespec now;
    *step = "getrandom";
    if (getrandom(boot_random, sizeof boot_random, GRND_NONBLOCK) != sizeof boot_random)
        return errno;
    *step = "read the identity back";
    if (gethostname(hostname, sizeof hostname) < 0 ||
        read_text("/etc/machine-id", machine_id, sizeof machine_id) < (ssize_t)MACHINE_ID_DIGITS ||
        read_text(GENERATION_FILE, number, sizeof number) <= 0 || clock_gettime(CLOCK_REALTIME, &now) < 0)
        return errno ? errno : EIO;
    hostname[HOSTNAME_MAX] = '\0';
    wire_put_number(answer, 1, 8, strtoull(number, NULL, 10));
    wire_put(answer, 2, boot_random, sizeof boot_random);
    wire_put(answer, 3, hostname, (uint32_t)strlen(hostname));
    wire_put(answer, 4, machine_id, MACHINE_ID_DIGITS);
    wire_put_number(answer, 5, 8, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
    put_addresses(answer);
    return 0;
}

int identity_apply(const struct wire_frame *frame, struct wire_writer *answer, const char **step) {
    struct request request;
    char number[32];
    *step = "malformed or missing fields";
    if (!parse(frame, &request))
        return EBADMSG;
    struct timespec clock = {.tv_sec = (time_t)(request.realtime_ns / 1000000000u),
                             .tv_nsec = (long)(request.realtime_ns % 1000000000u)};
    *step = "add entropy";
    if (add_entropy(request.seed, request.seed_bytes) < 0)
        return errno;
    *step = "set the clock";
    if (clock_settime(CLOCK_REALTIME, &clock) < 0)
        return errno;
    *step = "set the hostname";
    if (sethostname(request.hostname, strlen(request.hostname)) < 0)
        return errno;
    *step = "write /etc/hostname";
    if (write_line("/etc/hostname", request.hostname, 0644) < 0)
        return errno;
    *step = "write /etc/hosts";
    if (write_hosts(request.hostname) < 0)
        return errno;
    *step = "write /etc/machine-id";
    if (write_line("/etc/machine-id", request.machine_id, 0444) < 0)
        return errno;
    *step = "write " GENERATION_FILE;
    snprintf(number, sizeof number, "%llu", (unsigned long long)request.generation);
    if ((mkdir(RUN_DIRECTORY, 0755) < 0 && errno != EEXIST) || write_line(GENERATION_FILE, number, 0644) < 0)
        return errno;
    generation = request.generation;
    errno = 0;
    return answer_with(answer, step);
}

int identity_set_clock(const struct wire_frame *frame, struct wire_writer *answer) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    uint64_t realtime_ns = 0;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1 && !wire_number(&field, 8, &realtime_ns))
            return EBADMSG;
    if (more < 0 || realtime_ns == 0 || realtime_ns > INT64_MAX)
        return EBADMSG;
    struct timespec clock = {.tv_sec = (time_t)(realtime_ns / 1000000000u),
                             .tv_nsec = (long)(realtime_ns % 1000000000u)};
    if (clock_settime(CLOCK_REALTIME, &clock) < 0 || clock_gettime(CLOCK_REALTIME, &clock) < 0)
        return errno;
    wire_put_number(answer, 1, 8, (uint64_t)clock.tv_sec * 1000000000u + (uint64_t)clock.tv_nsec);
    return 0;
}
