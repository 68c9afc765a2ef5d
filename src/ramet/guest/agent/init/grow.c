#include "init/grow.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include "init/console.h"

#define RESIZE_FS _IOW('f', 16, uint64_t) /* EXT4_IOC_RESIZE_FS of linux/ext4.h, which a libc lacks: blocks in all */
#define SUPERBLOCK_AT 1024
#define MAGIC 0xef53u
#define LARGEST_LOG_BLOCK 6u /* 64 KiB */
#define INCOMPAT_64BIT 0x80u

/* The kernel's documentation, "ext4 Data Structures and Algorithms", "Super Block": numbers are little-endian. */
struct superblock {
    uint32_t inodes, blocks_low;
    uint8_t unused1[16];
    uint32_t log_block;
    uint8_t unused2[28];
    uint16_t magic;
    uint8_t unused3[38];
    uint32_t incompatible;
    uint8_t unused4[236];
    uint32_t blocks_high;
};
_Static_assert(offsetof(struct superblock, magic) == 0x38, "s_magic");
_Static_assert(offsetof(struct superblock, incompatible) == 0x60, "s_feature_incompat");
_Static_assert(offsetof(struct superblock, blocks_high) == 0x150, "s_blocks_count_hi");

/* The kernel keeps the superblock of a mounted filesystem in the device's pages, so this is what it goes by. */
static int measure(int device, uint64_t *blocks, uint64_t *block_bytes, uint64_t *device_bytes) {
    struct superblock super;
    ssize_t count = pread(device, &super, sizeof super, SUPERBLOCK_AT);
    if (count != (ssize_t)sizeof super || ioctl(device, BLKGETSIZE64, device_bytes) < 0)
        return count < 0 || count == (ssize_t)sizeof super ? errno : EIO;
    if (super.magic != MAGIC || super.log_block > LARGEST_LOG_BLOCK)
        return EINVAL;
    *blocks = super.blocks_low;
    if (super.incompatible & INCOMPAT_64BIT)
        *blocks |= (uint64_t)super.blocks_high << 32;
    *block_bytes = 1024u << super.log_block;
    return 0;
}

int grow_mounted(const char *device, int directory, struct growth *growth) {
    uint64_t blocks, block_bytes, wanted;
    int error, fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    if ((error = measure(fd, &blocks, &block_bytes, &growth->device_bytes)) == 0) {
        wanted = growth->device_bytes / block_bytes;
        if (wanted > blocks && ioctl(directory, RESIZE_FS, &wanted) < 0)
            error = errno;
        else
            growth->filesystem_bytes = (wanted > blocks ? wanted : blocks) * block_bytes;
    }
    close(fd);
    return error;
}

void grow_at_mount(const char *device, const char *path) {
    struct growth growth;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = fd < 0 ? errno : grow_mounted(device, fd, &growth);
    if (fd >= 0)
        close(fd);
    if (error != 0)
        init_say("ramet: the filesystem of %s can't grow to its size: %s", device, strerror(error));
}
