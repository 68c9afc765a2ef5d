#include "init/files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NEW ".ramet-new"

/* Closes it; errno stays. */
static int without(int fd, int error) {
    close(fd);
    errno = error;
    return -1;
}

int files_open(const char *path, int flags) {
    struct stat found;
    /* Before it is opened: to open a device may do something. */
    if ((flags & O_NOFOLLOW ? lstat(path, &found) : stat(path, &found)) < 0)
        return -1;
    if (!S_ISREG(found.st_mode)) {
        errno = EINVAL;
        return -1;
    }
    int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return -1;
    if (fstat(fd, &found) < 0)
        return without(fd, errno);
    return S_ISREG(found.st_mode) ? fd : without(fd, EINVAL);
}

ssize_t files_read(int fd, char *text, size_t capacity) {
    size_t length = 0;
    ssize_t count = 0;
    while (length < capacity - 1 && (count = pread(fd, text + length, capacity - 1 - length, (off_t)length)) > 0)
        length += (size_t)count;
    text[count < 0 ? 0 : length] = '\0';
    return count < 0 ? -1 : (ssize_t)length;
}

int files_write(int fd, const char *text, size_t length, off_t offset) {
    ssize_t count = pwrite(fd, text, length, offset);
    if (count >= 0 && count != (ssize_t)length)
        errno = ENOSPC;
    return count == (ssize_t)length ? 0 : -1;
}

int files_replace(const char *path, const char *text, size_t length, mode_t mode) {
    char temporary[256];
    if ((size_t)snprintf(temporary, sizeof temporary, "%s" NEW, path) >= sizeof temporary) {
        errno = ENAMETOOLONG;
        return -1;
    }
    unlink(temporary); /* of an agent that was killed, or somebody's trap */
    int fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0)
        return -1;
    if (files_write(fd, text, length, 0) == 0 && rename(temporary, path) == 0)
        return fd;
    int error = errno;
    unlink(temporary);
    return without(fd, error);
}

bool files_put(const char *path, const char *text, size_t length, mode_t mode) {
    int fd = files_replace(path, text, length, mode);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

bool files_make_directories(const char *path) {
    char part[PATH_MAX];
    bool is_there = true;
    for (size_t i = 1; i < sizeof part && path[i - 1] != '\0'; i++)
        if (path[i] == '/' || path[i] == '\0') {
            memcpy(part, path, i);
            part[i] = '\0';
            is_there = mkdir(part, 0755) == 0 || errno == EEXIST;
        }
    return is_there;
}
