#include "identity/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "identity/addresses.h"
#include "loop/events.h"
#include "identity/identity_files.h"
#include "loop/kernel.h"
#include "link/message.h"

#define RUN_DIRECTORY "/run/ramet"
#define GENERATION_FILE RUN_DIRECTORY "/generation"
#define HOSTS_MAX 16384
#define NUMBER_DIGITS 20u
#define OWN_NAME_ADDRESS "127.0.1.1" /* Debian's convention for a host's own name without a fixed address */
#define OWN_NAME_LINE OWN_NAME_ADDRESS "\t"

struct request {
    uint64_t generation, realtime_ns;
    const uint8_t *seed;
    uint32_t seed_bytes;
    char hostname[HOSTNAME_MAX + 1];
    char machine_id[MACHINE_ID_DIGITS + 1];
};

static uint64_t generation;
static int urandom = -1;
static struct identity_file hostname_file = {"/etc/hostname", 0644, -1, 0, 0, 0}, hosts_file = {"/etc/hosts", 0644, -1, 0, 0, 0},
                   machine_id_file = {"/etc/machine-id", 0444, -1, 0, 0, 0},
                   generation_file = {GENERATION_FILE, 0644, -1, 0, 0, 0};

static char old_hosts[HOSTS_MAX], new_hosts[HOSTS_MAX + 128];

uint64_t identity_generation(void) { return generation; }

void identity_unshare(void) {
    if (generation == 0)
        return;
    unshare(&generation);
    unshare(&generation_file);
    unshare(old_hosts);
    unshare(new_hosts);
    addresses_unshare();
}

/* No printf(3) and no strtoull(3) here: see identity_files.h for what code costs that runs for the first time. */
static char *put_number(char *at, uint64_t number) {
    char digits[NUMBER_DIGITS];
    size_t count = 0;
    do
        digits[count++] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    while (count > 0)
        *at++ = digits[--count];
    return at;
}

static uint64_t number_in(const char *text) {
    uint64_t number = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        number = 10 * number + (uint64_t)(*text - '0');
    return number;
}

void identity_init(void) {
    char text[NUMBER_DIGITS + 2];
    urandom = hostname_file.fd = hosts_file.fd = machine_id_file.fd = generation_file.fd = -1;
    addresses_init();
    identity_files_init();
    if (identity_file_read(&generation_file, text, sizeof text) > 0)
        generation = number_in(text);
}

void identity_leave(void) {
    identity_file_close(&hostname_file);
    identity_file_close(&hosts_file);
    identity_file_close(&machine_id_file);
    identity_file_close(&generation_file);
    identity_files_leave();
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
    if (urandom < 0 && (urandom = open("/dev/urandom", O_RDWR | O_CLOEXEC)) < 0)
        return -1;
    int result = ioctl(urandom, KERNEL_RNDADDENTROPY, &pool) < 0 ? -1 : ioctl(urandom, KERNEL_RNDRESEEDCRNG);
    int error = errno;
    memset(&pool, 0, sizeof pool);
    errno = error;
    return result;
}

static int write_hosts(const char *hostname) {
    size_t length = 0;
    ssize_t had = identity_file_read(&hosts_file, old_hosts, sizeof old_hosts);
    if (had < 0)
        strcpy(old_hosts, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    if (had == sizeof old_hosts - 1)
        return 0; /* somebody's block list: better an old name in it than a part of it lost */
    for (char *line = old_hosts, *next; *line != '\0'; line = next) {
        next = strchrnul(line, '\n');
        next += *next == '\n';
        size_t own = strlen(OWN_NAME_ADDRESS);
        if (strncmp(line, OWN_NAME_ADDRESS, own) == 0 && (line[own] == ' ' || line[own] == '\t'))
            continue;
        memcpy(new_hosts + length, line, (size_t)(next - line));
        length += (size_t)(next - line);
    }
    if (length > 0 && new_hosts[length - 1] != '\n')
        new_hosts[length++] = '\n';
    char *end = mempcpy(new_hosts + length, OWN_NAME_LINE, strlen(OWN_NAME_LINE));
    end = mempcpy(end, hostname, strlen(hostname));
    *end++ = '\n';
    return identity_file_write(&hosts_file, new_hosts, (size_t)(end - new_hosts));
}

static int write_line(struct identity_file *file, const char *line, size_t length) {
    char text[HOSTNAME_MAX + 1];
    *(char *)mempcpy(text, line, length) = '\n';
    return identity_file_write(file, text, length + 1);
}

static int write_generation(uint64_t number) {
    char text[NUMBER_DIGITS];
    if (!identity_file_is_current(&generation_file) && mkdir(RUN_DIRECTORY, 0755) < 0 && errno != EEXIST)
        return -1;
    return write_line(&generation_file, text, (size_t)(put_number(text, number) - text));
}

static int answer_with(struct wire_writer *answer, const char **step) {
    uint8_t boot_random[16];
    char hostname[HOSTNAME_MAX + 1], machine_id[MACHINE_ID_DIGITS + 2], number[NUMBER_DIGITS + 2];
    struct timespec now;
    *step = "getrandom";
    if (getrandom(boot_random, sizeof boot_random, GRND_NONBLOCK) != sizeof boot_random)
        return errno;
    *step = "read the identity back";
    if (gethostname(hostname, sizeof hostname) < 0 ||
        identity_file_read(&machine_id_file, machine_id, sizeof machine_id) < (ssize_t)MACHINE_ID_DIGITS ||
        identity_file_read(&generation_file, number, sizeof number) <= 0 || clock_gettime(CLOCK_REALTIME, &now) < 0)
        return errno ? errno : EIO;
    hostname[HOSTNAME_MAX] = '\0';
    wire_put_number(answer, 1, 8, number_in(number));
    wire_put(answer, 2, boot_random, sizeof boot_random);
    wire_put(answer, 3, hostname, (uint32_t)strlen(hostname));
    wire_put(answer, 4, machine_id, MACHINE_ID_DIGITS);
    wire_put_number(answer, 5, 8, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
    addresses_put(answer, 6);
    return 0;
}

int identity_apply(const struct wire_frame *frame, struct wire_writer *answer, const char **step) {
    struct request request;
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
    if (write_line(&hostname_file, request.hostname, strlen(request.hostname)) < 0)
        return errno;
    *step = "write /etc/hosts";
    if (write_hosts(request.hostname) < 0)
        return errno;
    *step = "write /etc/machine-id";
    if (write_line(&machine_id_file, request.machine_id, MACHINE_ID_DIGITS) < 0)
        return errno;
    *step = "write " GENERATION_FILE;
    if (write_generation(request.generation) < 0)
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
