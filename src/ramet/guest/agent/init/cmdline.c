#include "init/cmdline.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

void init_command_line(char *line, size_t size) {
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, line, size - 1);
    if (fd >= 0)
        close(fd);
    line[length < 0 ? 0 : length] = '\0';
}

static const char spaces[] = " \t\r\n";

bool init_has_argument(const char *line, const char *word) {
    size_t length = strlen(word), next;
    for (; *line != '\0'; line += next + strspn(line + next, spaces)) {
        next = strcspn(line, spaces);
        if (next == length && memcmp(line, word, length) == 0)
            return true;
    }
    return false;
}

bool init_next_argument(const char **line, const char *name, char *value, size_t size) {
    size_t prefix = strlen(name), length;
    for (const char *word = *line; *word != '\0'; word += length) {
        word += strspn(word, spaces);
        length = strcspn(word, spaces);
        if (length < prefix || memcmp(word, name, prefix) != 0)
            continue;
        *line = word + length;
        bool fits = length - prefix < size;
        memcpy(value, word + prefix, fits ? length - prefix : 0);
        value[fits ? length - prefix : 0] = '\0';
        return true;
    }
    return false;
}
