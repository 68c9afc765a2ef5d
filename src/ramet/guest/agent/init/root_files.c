#include "init/root_files.h"

#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init/files.h"

#define HOSTS "/etc/hosts"
#define RESOLVER "/etc/resolv.conf"
#define TEXT(literal) literal, sizeof literal - 1

/* True for a regular file with more than space in it. */
static bool says_something(const char *path) {
    char text[4096];
    int fd = files_open(path, O_RDONLY | O_NOFOLLOW);
    if (fd < 0)
        return false;
    ssize_t length = files_read(fd, text, sizeof text);
    close(fd);
    return length > 0 && text[strspn(text, " \t\r\n")] != '\0';
}

static bool provide(const char *path, const char *text, size_t length) {
    return says_something(path) || files_put(path, text, length, 0644);
}

/* A link to one will do. */
static bool provide_directory(const char *path, mode_t mode) {
    struct stat found;
    if (stat(path, &found) == 0 && S_ISDIR(found.st_mode))
        return true;
    unlink(path);
    return mkdir(path, mode) == 0 && chmod(path, mode) == 0; /* mkdir(2) leaves the umask's part out */
}

const char *root_files_make(void) {
    umask(022);
    if (!provide_directory("/etc", 0755))
        return "/etc";
    if (!provide_directory("/run", 0755))
        return "/run";
    if (!provide_directory("/tmp", 01777))
        return "/tmp";
    if (!provide(HOSTS, TEXT("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")))
        return HOSTS;
    return provide(RESOLVER, TEXT("# This guest has no network.\n")) ? NULL : RESOLVER;
}
