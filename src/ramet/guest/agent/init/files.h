/* Small files of the guest, read and written so that nothing that a guest may have put in their place does harm: a link
 * leads nowhere else, a FIFO or a device keeps nobody waiting, a large file takes no memory. */
#ifndef RAMET_FILES_H
#define RAMET_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* A descriptor of a regular file; -1 with errno, EINVAL when it is something else. `flags` are for open(2): O_NOFOLLOW
 * refuses a link, O_RDWR opens for writing. */
int files_open(const char *path, int flags);

/* Its beginning, up to `capacity` - 1 octets, with a NUL behind them. The length, or -1 with errno and `text` "". */
ssize_t files_read(int fd, char *text, size_t capacity);

/* Makes a regular file of `text` at `path`, in the place of what is there, which is only replaced when the new one is
 * whole. A descriptor of it, or -1 with errno. `path` is shorter than 240. */
int files_replace(const char *path, const char *text, size_t length, mode_t mode);

/* The same without the descriptor. */
bool files_put(const char *path, const char *text, size_t length, mode_t mode);

/* All of `text` at `offset`. 0, or -1 with errno: ENOSPC when only a part of it was taken. */
int files_write(int fd, const char *text, size_t length, off_t offset);

/* The directory and those above it, with mode 0755. False with errno when the last of them can't be made. */
bool files_make_directories(const char *path);

#endif
