#include "identity/identity_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "init/files.h"
#include "loop/events.h"

#define MOUNTS "/proc/self/mountinfo"

static int changes = -1, mounts = -1;
static unsigned news = 1;

void identity_file_close(struct identity_file *file) {
    if (file->fd >= 0)
        close(file->fd);
    file->fd = -1;
    file->known_at = 0;
}

void identity_files_init(void) { changes = mounts = -1; }

void identity_files_leave(void) {
    if (changes >= 0)
        close(changes);
    if (mounts >= 0)
        close(mounts);
    changes = mounts = -1;
    news++;
}

void identity_files_event(void) {
    char events[1024];
    news++;
    while (read(changes, events, sizeof events) > 0)
        ; /* events of any file: all are looked at again */
}

static bool can_be_told(void) {
    if (changes >= 0)
        return mounts >= 0;
    changes = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    mounts = open(MOUNTS, O_RDONLY | O_CLOEXEC);
    if (changes >= 0 && mounts >= 0 && events_watch(changes, E_IDENTITY_FILES, 0, EPOLLIN) == 0 &&
        events_watch(mounts, E_IDENTITY_FILES, 0, EPOLLPRI) == 0)
        return true;
    if (mounts >= 0)
        close(mounts);
    mounts = -1;
    return false;
}

/* Before one looks: what changes meanwhile is news. */
static bool will_be_told(const struct identity_file *file) {
    char directory[64];
    size_t length = (size_t)(strrchr(file->path, '/') - file->path);
    *(char *)mempcpy(directory, file->path, length) = '\0';
    return can_be_told() && inotify_add_watch(changes, directory, IN_MOVE_SELF | IN_ONLYDIR | IN_DONT_FOLLOW) >= 0 &&
           inotify_add_watch(changes, file->path, IN_ATTRIB | IN_MOVE_SELF | IN_DELETE_SELF | IN_DONT_FOLLOW) >= 0;
}

bool identity_file_is_current(struct identity_file *file) {
    struct stat found;
    if (file->fd < 0)
        return false;
    if (file->known_at == news)
        return true;
    unsigned known_at = will_be_told(file) ? news : 0;
    if (lstat(file->path, &found) < 0 || found.st_dev != file->device || found.st_ino != file->inode ||
        found.st_nlink != 1) {
        identity_file_close(file);
        return false;
    }
    file->known_at = known_at;
    return true;
}

ssize_t identity_file_read(struct identity_file *file, char *text, size_t capacity) {
    text[0] = '\0';
    if (identity_file_is_current(file))
        return files_read(file->fd, text, capacity);
    int fd = files_open(file->path, O_RDONLY | O_NOFOLLOW);
    if (fd < 0)
        return -1;
    ssize_t length = files_read(fd, text, capacity);
    int error = errno;
    close(fd);
    errno = error;
    return length;
}

/* A separate mount can't be replaced: it is written to. */
static int replace(const char *path, const char *text, size_t length, mode_t mode) {
    int fd = files_replace(path, text, length, mode);
    if (fd >= 0 || (errno != EBUSY && errno != EXDEV))
        return fd;
    if ((fd = files_open(path, O_RDWR | O_NOFOLLOW)) < 0)
        return -1;
    if (files_write(fd, text, length, 0) == 0 && ftruncate(fd, (off_t)length) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

/* What was written is all of it. */
static int end_at(int fd, size_t length) {
    char more;
    return pread(fd, &more, 1, (off_t)length) == 0 ? 0 : ftruncate(fd, (off_t)length);
}

int identity_file_write(struct identity_file *file, const char *text, size_t length) {
    struct stat found;
    if (identity_file_is_current(file))
        return files_write(file->fd, text, length, 0) < 0 ? -1 : end_at(file->fd, length);
    file->fd = replace(file->path, text, length, file->mode);
    if (file->fd < 0)
        return -1;
    if (fstat(file->fd, &found) < 0) {
        identity_file_close(file); /* written it is; the next time it is replaced again */
        return 0;
    }
    file->device = found.st_dev;
    file->inode = found.st_ino;
    /* So that a fork needn't look, nor keep a time of access. */
    if (identity_file_is_current(file))
        fcntl(file->fd, F_SETFL, O_NOATIME);
    return 0;
}
