#include "init/disks.h"

#include <errno.h>
#include <string.h>
#include <sys/mount.h>

#include "init/block.h"
#include "init/cmdline.h"
#include "init/console.h"
#include "init/files.h"
#include "init/grow.h"
#include "init/modules.h"

#define MODULES_FILE "/etc/ramet/modules.ext4"
#define DISKS_MAX 8
#define DISK_PATH_MAX 256

static char mounted[DISKS_MAX][DISK_PATH_MAX];
static int mounted_count;

void disks_drivers(void) {
    static bool are_loaded;
    if (!are_loaded)
        init_modules_of(MODULES_FILE, NULL);
    are_loaded = true;
}

/* NULL, or why it isn't mounted. */
static const char *mount_disk(const struct block_name *disk, const char *path) {
    char device[BLOCK_PATH_MAX];
    if (!block_find(disk, device))
        return "there is no such disk";
    files_make_directories(path); /* what can't be made, mount(2) finds missing */
    /* noinit_itable: the host made it of zeros, and a guest that writes them once more would fill its disk's file. */
    if (mount(device, path, "ext4", 0, "noinit_itable") < 0)
        return strerror(errno);
    grow_at_mount(device, path);
    if (mounted_count < DISKS_MAX)
        strcpy(mounted[mounted_count++], path);
    return NULL;
}

bool disks_mount(void) {
    char line[COMMAND_LINE_MAX], value[512];
    bool is_whole = true;
    init_command_line(line, sizeof line);
    for (const char *rest = line; init_next_argument(&rest, DISKS_ARGUMENT, value, sizeof value);) {
        struct block_name disk;
        const char *path, *why;
        if (!block_name_of(value, ':', &disk, &path) || path[0] != '/' || strlen(path) >= DISK_PATH_MAX) {
            init_say("ramet: " DISKS_ARGUMENT "%s isn't understood", value);
            is_whole = false;
            continue;
        }
        disks_drivers();
        if ((why = mount_disk(&disk, path)) != NULL) {
            init_say("ramet: %s can't be mounted at %s: %s", disk.serial, path, why);
            is_whole = false;
        }
    }
    return is_whole;
}

void disks_leave(void) {
    while (mounted_count > 0) {
        const char *path = mounted[--mounted_count];
        if (umount2(path, 0) == 0)
            continue;
        if (mount(NULL, path, NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0)
            init_say("ramet: unmount %s: %s", path, strerror(errno));
    }
}
