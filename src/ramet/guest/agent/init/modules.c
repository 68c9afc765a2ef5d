#include "init/modules.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init/console.h"

#define MODULES_FILE "/etc/ramet/modules"

static void load_module(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
        init_say("ramet: module %s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

void init_modules_of(const char *path, void (*loaded)(void)) {
    FILE *list = fopen(path, "re");
    char line[512];
    if (list == NULL)
        return;
    while (fgets(line, sizeof line, list) != NULL) {
        line[strcspn(line, "\r\n")] = '\0';
        if (line[0] == '\0' || line[0] == '#')
            continue;
        load_module(line);
        if (loaded != NULL)
            loaded();
    }
    fclose(list);
}

void init_modules(void (*loaded)(void)) { init_modules_of(MODULES_FILE, loaded); }
