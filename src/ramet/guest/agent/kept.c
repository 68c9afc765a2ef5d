#include "kept.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NEW ".ramet-new"

void kept_close(struct kept *file) {
    if (file->fd >= 0)
        close(file->fd);
    file->fd = -1;
}

static bool find(struct kept *file, struct stat *found) {
    if (file->fd < 0)
        return false;
    if (lstat(file->path, found) == 0 && found->st_dev == file->device && found->st_ino == file->inode &&
        found->st_nlink == 1)
        return true;
    kept_close(file);
    return false;
}

bool kept_is_current(struct kept *file) {
    struct stat found;
    return find(file, &found);
}

static ssize_t read_all(int fd, char *text, size_t capacity) {
    size_t length = 0;
    ssize_t count = 0;
    while (length < capacity - 1 && (count = pread(fd, text + length, capacity - 1 - length, (off_t)length)) > 0)
        length += (size_t)count;
    text[length] = '\0';
    return count < 0 ? -1 : (ssize_t)length;
}

ssize_t kept_read(struct kept *file, char *text, size_t capacity) {
    text[0] = '\0';
    if (kept_is_current(file))
        return read_all(file->fd, text, capacity);
    int fd = open(file->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t length = read_all(fd, text, capacity);
    int error = errno;
    close(fd);
    errno = error;
    return length;
}

static int write_all(int fd, const char *text, size_t length) {
    ssize_t count = pwrite(fd, text, length, 0);
    if (count >= 0 && count != (ssize_t)length)
        errno = ENOSPC;
    return count == (ssize_t)length ? 0 : -1;
}

/* A descriptor of `path` with `text` in it, or -1 with errno. */
static int write_whole(const char *path, const char *text, size_t length, mode_t mode) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (fd < 0 || write_all(fd, text, length) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static int replace(const char *path, const char *text, size_t length, mode_t mode) {
    char temporary[64];
    snprintf(temporary, sizeof temporary, "%s" NEW, path);
    int fd = write_whole(temporary, text, length, mode);
    if (fd >= 0 && rename(temporary, path) == 0)
        return fd;
    int error = errno;
    if (fd >= 0)
        close(fd);
    unlink(temporary);
    errno = error;
    return error == EBUSY || error == EXDEV ? write_whole(path, text, length, mode) : -1;
}

int kept_write(struct kept *file, const char *text, size_t length) {
    struct stat found;
    if (find(file, &found)) {
        if (write_all(file->fd, text, length) < 0)
            return -1;
        return found.st_size > (off_t)length ? ftruncate(file->fd, (off_t)length) : 0;
    }
    file->fd = replace(file->path, text, length, file->mode);
    if (file->fd < 0)
        return -1;
    if (fstat(file->fd, &found) < 0) {
        kept_close(file); /* written it is; the next time it is replaced again */
        return 0;
    }
    file->device = found.st_dev;
    file->inode = found.st_ino;
    return 0;
}
