/* Small files that every identity writes anew, with descriptors that stay open from one to the next.
 *
 * Why: in an emulated fork every piece of the kernel runs for the first time, which costs about 5 µs a basic block. To
 * create, rename and evict four files was a fifth of an identity; to write them in place through descriptors from before
 * the fork is a sixth of that. Whether a descriptor still is what its path leads to is asked of lstat(2) once, and again
 * only after the kernel has told of a change: of the file's names, its directory's, or of mounts. Where its directory
 * is a symbolic link, of which nothing is told, it is asked each time; one further up isn't looked for.
 */
#ifndef RAMET_IDENTITY_FILES_H
#define RAMET_IDENTITY_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/types.h>

struct identity_file {
    const char *path;
    mode_t mode;
    int fd; /* -1: none */
    dev_t device;
    ino_t inode;
    unsigned known_at; /* what was current then is so until there is news; 0: that isn't known */
};

void identity_files_init(void);
/* No more is told of changes: the descriptors for that keep the filesystem of `/` busy. */
void identity_files_leave(void);

/* Whether the descriptor still is what the path leads to, and only that path. Else it is closed: somebody has replaced,
 * moved or linked the file. */
bool identity_file_is_current(struct identity_file *file);

/* A file may have been replaced, moved or linked, or something mounted above it. */
void identity_files_event(void);

/* The file's contents, "" when there is none. Their length, or -1 with errno. */
ssize_t identity_file_read(struct identity_file *file, char *text, size_t capacity);

/* Makes `text` the contents: in place by one pwrite(2), and cut off behind it if they were longer, where the file is
 * the one that was written last. Else by rename, so that a reader sees the old or the new; in place where the file is a
* separate mount. Either way the descriptor is kept. 0, or -1 with errno: some of it may be there. */
int identity_file_write(struct identity_file *file, const char *text, size_t length);

void identity_file_close(struct identity_file *file);

#endif
