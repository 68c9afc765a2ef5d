#include "init/bases.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "init/block.h"
#include "init/cmdline.h"
#include "init/console.h"

#define ARGUMENT "ramet.base="
#define BASES_MAX 6
#define BLOCK_BYTES 4096u
#define BLOCKS_MAX (1ull << 32) /* EROFS numbers blocks with 32 bits */
#define DIGEST_BYTES 32
#define DIGITS_LEAST 32 /* of the digest, in hexadecimal */

/* The last block of a device, as ramet's writer makes it (images/erofs/blob.py): numbers are little-endian. */
struct mark {
    char magic[16];
    uint32_t version, unused;
    uint64_t blocks;
    uint8_t digest[DIGEST_BYTES];
};
#define MAGIC "ramet-layer-blob" /* without its NUL */
#define VERSION 1
#define TABLE_OFFSET (1024 + 86) /* extra_devices and devt_slotoff in the superblock (Linux, fs/erofs/erofs_fs.h) */
#define SLOT_BYTES 128
#define SLOT_BLOCKS 64

struct base {
    struct block_name name;
    char device[BLOCK_PATH_MAX];
    uint64_t blocks;
    char digits[2 * DIGEST_BYTES + 1];
};

static bool understand(const char *value, struct base *base) {
    const char *rest;
    char *end;
    errno = 0;
    if (!block_name_of(value, ':', &base->name, &rest) || *rest < '0' || *rest > '9')
        return false;
    base->blocks = strtoull(rest, &end, 10);
    if (errno != 0 || *end != ':' || base->blocks == 0 || base->blocks >= BLOCKS_MAX)
        return false;
    size_t length = strlen(end + 1);
    if (length < DIGITS_LEAST || length >= sizeof base->digits || strspn(end + 1, "0123456789abcdef") != length)
        return false;
    strcpy(base->digits, end + 1);
    return true;
}

/* NULL, or what is wrong with a mark that was read. */
static const char *fault_of(const struct mark *mark, const struct base *base) {
    char digits[2 * DIGEST_BYTES + 1];
    if (memcmp(mark->magic, MAGIC, sizeof mark->magic) != 0)
        return "its last block is no mark";
    if (mark->version != VERSION)
        return "its mark has another version";
    if (mark->blocks != base->blocks)
        return "its mark gives another length";
    for (int i = 0; i < DIGEST_BYTES; i++)
        snprintf(digits + 2 * i, 3, "%02x", mark->digest[i]);
    return strncmp(digits, base->digits, strlen(base->digits)) == 0 ? NULL : "it is another image's or layer's";
}

/* NULL, or why it isn't the device that the host means. `room` is for the reason's text. */
static const char *check(struct base *base, char *room, size_t size) {
    struct mark mark;
    uint64_t wanted = (base->blocks + 1) * BLOCK_BYTES;
    if (!block_find(&base->name, base->device))
        return "there is no such disk";
    int fd = open(base->device, O_RDONLY | O_CLOEXEC);
    off_t has = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    ssize_t count = -1;
    if (has >= 0 && (uint64_t)has == wanted)
        count = pread(fd, &mark, sizeof mark, (off_t)(wanted - BLOCK_BYTES));
    int error = errno;
    if (fd >= 0)
        close(fd);
    if (has >= 0 && (uint64_t)has != wanted) {
        snprintf(room, size, "it has %lld bytes instead of %llu", (long long)has, (unsigned long long)wanted);
        return room;
    }
    if (count != (ssize_t)sizeof mark) {
        snprintf(room, size, "it can't be read: %s", strerror(count < 0 ? error : EIO));
        return room;
    }
    return fault_of(&mark, base);
}

/* NULL, or what is wrong with the devices that the image itself lists (images/erofs/format.py): they say how long each is. */
static const char *table_fault(const struct base *bases, unsigned count) {
    uint16_t table[2]; /* how many, and the place of the first */
    uint32_t blocks;
    int fd = open(bases[0].device, O_RDONLY | O_CLOEXEC);
    bool is_read = fd >= 0 && pread(fd, table, sizeof table, TABLE_OFFSET) == (ssize_t)sizeof table, fits = is_read;
    for (unsigned i = 1; fits && i < count && i <= table[0]; i++) {
        is_read = pread(fd, &blocks, sizeof blocks, SLOT_BYTES * (table[1] + i - 1) + SLOT_BLOCKS) == (ssize_t)sizeof blocks;
        fits = is_read && blocks == bases[i].blocks;
    }
    if (fd >= 0)
        close(fd);
    if (!is_read)
        return "its table of devices can't be read";
    if (table[0] != count - 1)
        return "it has another number of layers";
    return fits ? NULL : "its layers come in another order";
}

static const char *mount_fault(int error) {
    switch (error) {
    case ENODEV:
        return "this kernel has no EROFS";
    case EINVAL: /* the kernel says more in its own log */
    case EOPNOTSUPP:
        return "this kernel doesn't take it (it says why; a table of devices needs Linux 5.16)";
    default:
        return strerror(error);
    }
}

bool bases_mount(const char *target) {
    static struct base bases[BASES_MAX];
    char line[COMMAND_LINE_MAX], value[256], room[96], options[BASES_MAX * (BLOCK_PATH_MAX + sizeof "device=,")] = "";
    int count = 0;
    init_command_line(line, sizeof line);
    for (const char *rest = line; init_next_argument(&rest, ARGUMENT, value, sizeof value); count++) {
        if (count == BASES_MAX || !understand(value, &bases[count])) {
            init_say("ramet: " ARGUMENT "%s isn't understood", value);
            return false;
        }
        const char *why = check(&bases[count], room, sizeof room);
        if (why != NULL) {
            init_say("ramet: base %s isn't what the image says: %s", bases[count].name.serial, why);
            return false;
        }
    }
    if (count == 0) {
        init_say("ramet: there is no " ARGUMENT " for the image");
        return false;
    }
    const char *why = table_fault(bases, (unsigned)count);
    if (why != NULL) {
        init_say("ramet: base %s isn't what the image says: %s", bases[0].name.serial, why);
        return false;
    }
    for (int i = 1; i < count; i++)
        sprintf(options + strlen(options), "%sdevice=%s", i > 1 ? "," : "", bases[i].device);
    if (mount(bases[0].device, target, "erofs", MS_RDONLY, options) == 0)
        return true;
    init_say("ramet: the image can't be mounted: %s", mount_fault(errno));
    return false;
}
