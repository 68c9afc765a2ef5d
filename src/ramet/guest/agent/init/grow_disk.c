#include "init/grow_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init/block.h"
#include "init/cmdline.h"
#include "init/disks.h"
#include "init/root.h"

/* Finds the disk among the kernel's arguments. A descriptor of the root of its filesystem, or -1 with errno. */
static int open_filesystem(const char *name, struct block_name *disk) {
    char line[COMMAND_LINE_MAX], value[512];
    const char *path, *rest;
    init_command_line(line, sizeof line);
    for (rest = line; init_next_argument(&rest, DISKS_ARGUMENT, value, sizeof value);)
        if (block_name_of(value, ':', disk, &path) && strcmp(disk->serial, name) == 0)
            return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (rest = line; init_next_argument(&rest, ROOT_ARGUMENT "disk:", value, sizeof value);)
        if (block_name_of(value, ' ', disk, &path) && strcmp(disk->serial, name) == 0)
            return root_open_disk();
    errno = ENODEV;
    return -1;
}

int grow_disk(const char *name, struct growth *growth, char *text, size_t size) {
    struct block_name disk;
    struct stat directory, device;
    char path[BLOCK_PATH_MAX];
    int error = ENXIO, fd = open_filesystem(name, &disk);
    if (fd < 0) {
        error = errno;
        snprintf(text, size, "%.64s: %s", name, error == ENODEV ? "no such disk is mounted" : strerror(error));
        return error;
    }
    /* A guest may have unmounted it, or mounted something else there. */
    if (!block_find(&disk, path) || fstat(fd, &directory) < 0 || stat(path, &device) < 0 ||
        directory.st_dev != device.st_rdev)
        snprintf(text, size, "%.64s isn't mounted where it was at the start", name);
    else if ((error = grow_mounted(path, fd, growth)) != 0)
        snprintf(text, size, "%.64s: %s", name, strerror(error));
    close(fd);
    return error;
}
