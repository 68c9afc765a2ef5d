#include "init/memory.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysinfo.h>

#include "init/console.h"

#define TMPFS_MAGIC 0x01021994 /* linux/magic.h */
#define MIB (1024u * 1024u)
#define PROGRAMS_LEAST (16u * MIB)  /* what is left for programs, or a quarter */
#define RUN_MOST (64u * MIB)
#define BYTES_A_FILE 8192u          /* an inode without content takes 1 KiB of kernel memory that no size counts */
#define FILES_LEAST 1024u
#define DEVICES "mode=0755,size=1m" /* nodes, and what somebody puts there by mistake */
#define PRIVATE "/.ramet"

static uint64_t initramfs_bytes, shared_bytes; /* of `/`: what the initramfs took, and the limit of the rest */

static uint64_t larger(uint64_t one, uint64_t other) { return one > other ? one : other; }
static uint64_t smaller(uint64_t one, uint64_t other) { return one < other ? one : other; }

struct memory_shares memory_shares_of(uint64_t free_bytes) {
    struct memory_shares shares = {.run_bytes = smaller(free_bytes / 16, RUN_MOST)};
    uint64_t kept = larger(free_bytes / 4, PROGRAMS_LEAST) + shares.run_bytes;
    uint64_t rest = free_bytes > kept ? free_bytes - kept : 0;
    shares.files_bytes = larger(rest, free_bytes / 3); /* a very small guest: a little for each */
    shares.files_count = larger(shares.files_bytes / BYTES_A_FILE, FILES_LEAST);
    shares.run_count = larger(shares.run_bytes / BYTES_A_FILE, FILES_LEAST);
    return shares;
}

static void mount_tmpfs(const char *target, const char *mode, uint64_t bytes, uint64_t files) {
    char options[128];
    snprintf(options, sizeof options, "mode=%s,size=%llu,nr_inodes=%llu", mode, (unsigned long long)bytes,
             (unsigned long long)files);
    mkdir(target, 0755);
    if (mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, options) < 0 && errno != EBUSY)
        init_say("ramet: mount %s: %s", target, strerror(errno));
}

/* A directory of `/` under another name, so that both count as one: no program is found there by mistake. */
static bool bind_from_root(const char *source, const char *target) {
    mkdir(source, 01777);
    mkdir(target, 01777);
    if (chmod(source, 01777) < 0 || mount(source, target, NULL, MS_BIND, NULL) < 0)
        return false;
    if (mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV, NULL) < 0)
        init_say("ramet: mount %s: %s", target, strerror(errno));
    return true;
}

static bool bound_root(const struct memory_shares *shares) {
    struct statfs root;
    char options[96];
    if (statfs("/", &root) < 0 || (uint32_t)root.f_type != TMPFS_MAGIC)
        return false;
    uint64_t used = (uint64_t)(root.f_blocks - root.f_bfree) * (uint64_t)root.f_bsize;
    uint64_t files = (uint64_t)(root.f_files - root.f_ffree);
    snprintf(options, sizeof options, "size=%llu,nr_inodes=%llu", (unsigned long long)(used + shares->files_bytes),
             (unsigned long long)(files + shares->files_count));
    if (mount(NULL, "/", NULL, MS_REMOUNT, options) < 0) {
        init_say("ramet: limit /: %s", strerror(errno));
        return false;
    }
    initramfs_bytes = used;
    shared_bytes = shares->files_bytes;
    return true;
}

void memory_give_to_root(uint64_t bytes) {
    char options[64];
    if (shared_bytes == 0)
        return; /* it has no limit */
    uint64_t rest = shared_bytes > bytes ? shared_bytes - bytes : 0;
    snprintf(options, sizeof options, "size=%llu",
             (unsigned long long)(initramfs_bytes + larger(rest, shared_bytes / 8)));
    if (mount(NULL, "/", NULL, MS_REMOUNT, options) < 0)
        init_say("ramet: limit /: %s", strerror(errno));
}

void memory_filesystems(void) {
    struct sysinfo memory = {0};
    sysinfo(&memory);
    struct memory_shares shares = memory_shares_of((uint64_t)memory.freeram * memory.mem_unit);
    mount(NULL, "/dev", NULL, MS_REMOUNT | MS_NOSUID, DEVICES); /* refused by a kernel whose devtmpfs is no tmpfs */
    mount_tmpfs("/run", "0755", shares.run_bytes, shares.run_count);
    if (bound_root(&shares) && (mkdir(PRIVATE, 0700) == 0 || errno == EEXIST) &&
        bind_from_root(PRIVATE "/shm", "/dev/shm") && bind_from_root("/tmp", "/tmp"))
        return;
    /* `/` is on a disk, or can't be limited: a limit for the two alone. */
    mount_tmpfs("/tmp", "1777", shares.files_bytes / 2, shares.files_count / 2);
    mount_tmpfs("/dev/shm", "1777", shares.files_bytes / 2, shares.files_count / 2);
}
