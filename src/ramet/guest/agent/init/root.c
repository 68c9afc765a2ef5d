#include "init/root.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "init/bases.h"
#include "init/block.h"
#include "init/cmdline.h"
#include "init/console.h"
#include "init/disks.h"
#include "init/grow.h"
#include "init/memory.h"
#include "init/root_files.h"

#define PLACE "/.ramet-root" /* in the initramfs */
#define BASE PLACE "/base"
#define WRITTEN PLACE "/written"
#define UPPER WRITTEN "/upper"
#define WORK WRITTEN "/work"
#define MERGED PLACE "/merged"
#define MIB (1024u * 1024u)
#define FULL_BYTES MIB
#define BYTES_A_FILE 4096u /* a file with content takes as much anyway */
#define FILES_LEAST 1024u
#define UNMOUNT_TRIES 50
#define UNMOUNT_NS 20000000

static enum root_kind kind = ROOT_INITRAMFS;
static int initramfs = -1;

enum root_kind root_kind(void) { return kind; }

static bool fail(const char *what, const char *why) {
    init_say("ramet: %s: %s", what, why);
    return false;
}

/* --- what is written to the root ------------------------------------------------------------------------- */

static bool mount_disk(const char *value) {
    struct block_name disk;
    const char *rest;
    char device[BLOCK_PATH_MAX];
    if (!block_name_of(value, ' ', &disk, &rest) || *rest != '\0')
        return fail(ROOT_ARGUMENT "disk isn't understood", value);
    disks_drivers();
    if (!block_find(&disk, device))
        return fail("the root disk isn't there", disk.serial);
    /* noinit_itable: as for other disks (disks.c) */
    if (mount(device, WRITTEN, "ext4", 0, "noinit_itable") < 0)
        return fail("the root disk can't be mounted", strerror(errno));
    grow_at_mount(device, WRITTEN);
    kind = ROOT_DISK;
    return true;
}

static bool mount_ram(const char *value) {
    char options[128], *end;
    errno = 0;
    unsigned long long bytes = strtoull(value, &end, 10), files = bytes / BYTES_A_FILE;
    if (errno != 0 || *value < '0' || *value > '9' || *end != '\0' || bytes < MIB)
        return fail(ROOT_ARGUMENT "ram isn't understood", value);
    snprintf(options, sizeof options, "mode=0755,size=%llu,nr_inodes=%llu", bytes,
             files < FILES_LEAST ? FILES_LEAST : files);
    if (mount("tmpfs", WRITTEN, "tmpfs", 0, options) < 0)
        return fail("the root in RAM can't be mounted", strerror(errno));
    memory_give_to_root(bytes);
    kind = ROOT_RAM;
    return true;
}

/* overlayfs takes the attributes of `/` from the upper directory, which begins as the image has its own. */
static bool make_upper(void) {
    struct stat image;
    bool is_new = mkdir(UPPER, 0755) == 0;
    if (!is_new && errno != EEXIST)
        return fail("the root can't be written to", strerror(errno));
    if (is_new && (stat(BASE, &image) < 0 || chown(UPPER, image.st_uid, image.st_gid) < 0 ||
                   chmod(UPPER, image.st_mode & 07777) < 0))
        return fail("the attributes of the image's root", strerror(errno));
    if (mkdir(WORK, 0700) < 0 && errno != EEXIST)
        return fail("the root can't be written to", strerror(errno));
    return true;
}

static bool mount_overlay(void) {
    static const char options[] =
        "lowerdir=" BASE ",upperdir=" UPPER ",workdir=" WORK ",metacopy=on,redirect_dir=on";
    if (mount("overlay", MERGED, "overlay", 0, options) == 0)
        return true;
    return fail("the root can't be mounted", errno == ENODEV ? "this kernel has no overlayfs" : strerror(errno));
}

/* --- from the initramfs to the root, and back ------------------------------------------------------------- */

/* A directory of the root to mount on; what else the image has in its place is hidden. */
static bool mount_point(const char *path) {
    struct stat found;
    if (lstat(path, &found) == 0 && !S_ISDIR(found.st_mode) && unlink(path) < 0)
        return false;
    return mkdir(path, 0755) == 0 || errno == EEXIST;
}

/* /proc and /sys are there a second time: the initramfs, whose modprobe reads them, keeps its own. */
static bool mount_system(void) {
    const unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    if (!mount_point(MERGED "/dev") || !mount_point(MERGED "/proc") || !mount_point(MERGED "/sys"))
        return fail("/dev, /proc or /sys can't be made in the image", strerror(errno));
    if (mount("/dev", MERGED "/dev", NULL, MS_MOVE, NULL) < 0 ||
        mount("proc", MERGED "/proc", "proc", safe, NULL) < 0 ||
        mount("sysfs", MERGED "/sys", "sysfs", safe, NULL) < 0)
        return fail("/dev, /proc or /sys can't be mounted in the image", strerror(errno));
    return true;
}

static bool change_root(void) {
    /* The kernel's threads share this process's root until then, and would look for modprobe in the image. */
    if (unshare(CLONE_FS) < 0 || (initramfs = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0 || chdir(MERGED) < 0)
        return fail("leave the initramfs", strerror(errno));
    /* Moved, and not only entered: a process whose root isn't its namespace's can't make a user namespace. */
    if (mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        return fail("enter the root", strerror(errno));
    return true;
}

static bool enter(const char *value) {
    static const char *const places[] = {PLACE, BASE, WRITTEN, MERGED};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (mkdir(places[i], 0700) < 0 && errno != EEXIST)
            return fail(places[i], strerror(errno));
    if (!bases_mount(BASE))
        return false;
    bool is_mounted = strncmp(value, "disk:", 5) == 0  ? mount_disk(value + 5)
                      : strncmp(value, "ram:", 4) == 0 ? mount_ram(value + 4)
                                                       : fail(ROOT_ARGUMENT "… isn't understood", value);
    if (!is_mounted || !make_upper() || !mount_overlay() || !mount_system())
        return false;
    disks_drivers();
    if (!change_root())
        return false;
    const char *file = root_files_make();
    if (file != NULL)
        init_say("ramet: %s can't be written: %s%s", file, strerror(errno), root_advice(errno));
    return file == NULL;
}

bool root_enter(void) {
    char line[COMMAND_LINE_MAX], value[128];
    init_command_line(line, sizeof line);
    const char *rest = line;
    return !init_next_argument(&rest, ROOT_ARGUMENT, value, sizeof value) || enter(value);
}

/* Until nothing keeps it busy: a process that was killed may still be about to end. */
static bool unmount(const char *path) {
    for (int tries = 0; umount2(path, 0) < 0; tries++) {
        if (errno != EBUSY || tries == UNMOUNT_TRIES)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = UNMOUNT_NS}, NULL);
    }
    return true;
}

void root_leave(void) {
    char path[64];
    int merged = open(initramfs < 0 ? MERGED : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (kind == ROOT_INITRAMFS || merged < 0)
        return;
    if (initramfs >= 0 && (fchdir(initramfs) < 0 || chroot(".") < 0))
        fail("leave the root", strerror(errno));
    /* It lies on top of `/`, where only a descriptor leads to it; with that closed the overlay ends. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", merged);
    if (umount2(path, MNT_DETACH) < 0)
        fail("unmount the root", strerror(errno));
    close(merged);
    if (kind == ROOT_DISK && !unmount(WRITTEN) && mount(NULL, WRITTEN, NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0)
        fail("unmount the root disk", strerror(errno));
    kind = ROOT_INITRAMFS;
}

/* --- its room ---------------------------------------------------------------------------------------------- */

bool root_room(struct root_room *room) {
    struct statvfs root;
    if (kind == ROOT_INITRAMFS || statvfs("/", &root) < 0)
        return false;
    *room = (struct root_room){.bytes = (uint64_t)root.f_blocks * root.f_frsize,
                               .free_bytes = (uint64_t)root.f_bavail * root.f_frsize,
                               .free_files = root.f_files > 0 ? root.f_ffree : UINT64_MAX};
    /* f_bavail: ext4 keeps 2% of its blocks, 16 MiB at most, for its own use, and counts them as free. */
    room->is_full = room->free_bytes < FULL_BYTES || room->free_files == 0;
    return true;
}

int root_open_disk(void) {
    if (kind == ROOT_DISK && initramfs >= 0)
        return openat(initramfs, &WRITTEN[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    errno = ENODEV;
    return -1;
}

const char *root_advice(int error) {
    if (error != ENOSPC || kind == ROOT_INITRAMFS)
        return "";
    return kind == ROOT_DISK ? " (the guest's root is full: --rootfs disk:SIZE gives it more)"
                             : " (the guest's root in RAM is full: --rootfs ram:SIZE gives it more)";
}

void root_say_if_full(void) {
    struct root_room room;
    if (root_room(&room) && room.is_full)
        init_say("\nramet: the guest's root is full, all %llu MiB of it: --rootfs %s:SIZE gives it more",
                 (unsigned long long)(room.bytes / MIB), kind == ROOT_DISK ? "disk" : "ram");
}
