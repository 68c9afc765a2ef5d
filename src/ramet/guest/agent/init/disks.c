#include "init/disks.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "init/cmdline.h"
#include "init/console.h"
#include "init/modules.h"

#define MODULES_FILE "/etc/ramet/modules.ext4"
#define ARGUMENT "ramet.disk="
#define DISKS_MAX 8
#define LETTERS 26
#define WAIT_TRIES 200 /* for a device: its driver makes it before it is loaded, or a moment later */
#define WAIT_NS 10000000

struct disk {
    unsigned number;
    char serial[32];
    char path[256];
};

static char mounted[DISKS_MAX][sizeof ((struct disk *)0)->path];
static int mounted_count;

static bool understand(const char *word, size_t length, struct disk *disk) {
    char text[512], *end, *colon;
    if (length >= sizeof text)
        return false;
    memcpy(text, word, length);
    text[length] = '\0';
    errno = 0;
    unsigned long number = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != ',' || number >= LETTERS || (colon = strchr(end, ':')) == NULL)
        return false;
    *colon = '\0';
    if (colon[1] != '/' || strlen(end + 1) >= sizeof disk->serial || strlen(colon + 1) >= sizeof disk->path)
        return false;
    disk->number = (unsigned)number;
    strcpy(disk->serial, end + 1);
    strcpy(disk->path, colon + 1);
    return true;
}

/* The letter of the disk in vdX, or -1 while it isn't there. */
static int letter_of(const struct disk *disk) {
    char path[64], serial[64];
    bool is_there[LETTERS] = {false};
    for (int letter = 0; letter < LETTERS; letter++) {
        snprintf(path, sizeof path, "/sys/block/vd%c/serial", 'a' + letter);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        is_there[letter] = true;
        ssize_t length = read(fd, serial, sizeof serial - 1);
        close(fd);
        serial[length < 0 ? 0 : length] = '\0';
        serial[strcspn(serial, "\n")] = '\0';
        if (strcmp(serial, disk->serial) == 0)
            return letter;
    }
    return is_there[disk->number] ? (int)disk->number : -1;
}

static int wait_for(const struct disk *disk) {
    int letter;
    for (int tries = 0; (letter = letter_of(disk)) < 0 && tries < WAIT_TRIES; tries++)
        nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
    return letter;
}

static void make_directories(const char *path) {
    char part[sizeof ((struct disk *)0)->path];
    for (size_t i = 1; i < sizeof part && path[i - 1] != '\0'; i++)
        if (path[i] == '/' || path[i] == '\0') {
            memcpy(part, path, i);
            part[i] = '\0';
            mkdir(part, 0755); /* what can't be made, mount(2) finds missing */
        }
}

/* NULL, or why it isn't mounted. */
static const char *mount_disk(const struct disk *disk) {
    char device[16];
    int letter = wait_for(disk);
    if (letter < 0)
        return "there is no such disk";
    snprintf(device, sizeof device, "/dev/vd%c", 'a' + letter);
    make_directories(disk->path);
    /* noinit_itable: the host made it of zeros, and a guest that writes them once more would fill its disk's file. */
    if (mount(device, disk->path, "ext4", 0, "noinit_itable") < 0)
        return strerror(errno);
    if (mounted_count < DISKS_MAX)
        strcpy(mounted[mounted_count++], disk->path);
    return NULL;
}

bool disks_mount(void) {
    static const char spaces[] = " \t\r\n";
    char line[COMMAND_LINE_MAX];
    size_t length;
    bool has_modules = false, is_whole = true;
    init_command_line(line, sizeof line);
    for (const char *word = line; *word != '\0'; word += length) {
        word += strspn(word, spaces);
        length = strcspn(word, spaces);
        if (strncmp(word, ARGUMENT, sizeof ARGUMENT - 1) != 0)
            continue;
        struct disk disk;
        const char *value = word + sizeof ARGUMENT - 1, *why;
        if (!understand(value, length - (sizeof ARGUMENT - 1), &disk)) {
            init_say("ramet: %.*s isn't understood", (int)length, word);
            is_whole = false;
            continue;
        }
        if (!has_modules)
            init_modules_of(MODULES_FILE, NULL);
        has_modules = true;
        if ((why = mount_disk(&disk)) != NULL) {
            init_say("ramet: %s can't be mounted at %s: %s", disk.serial, disk.path, why);
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
