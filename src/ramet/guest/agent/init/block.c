#include "init/block.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LETTERS 26
#define WAIT_TRIES 200 /* for a device: its driver makes it before it is loaded, or a moment later */
#define WAIT_NS 10000000

bool block_name_of(const char *text, char end, struct block_name *name, const char **rest) {
    char *comma;
    errno = 0;
    unsigned long number = strtoul(text, &comma, 10);
    if (errno != 0 || *text < '0' || *text > '9' || *comma != ',' || number >= LETTERS)
        return false;
    const char *serial = comma + 1;
    size_t length = (size_t)(strchrnul(serial, end) - serial);
    if (length == 0 || length >= sizeof name->serial)
        return false;
    name->number = (unsigned)number;
    *(char *)mempcpy(name->serial, serial, length) = '\0';
    *rest = serial[length] == '\0' ? serial + length : serial + length + 1;
    return true;
}

/* The letter of the disk in vdX, or -1 while it isn't there. */
static int letter_of(const struct block_name *name) {
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
        if (strcmp(serial, name->serial) == 0)
            return letter;
    }
    return is_there[name->number] ? (int)name->number : -1;
}

bool block_find(const struct block_name *name, char path[BLOCK_PATH_MAX]) {
    int letter;
    for (int tries = 0; (letter = letter_of(name)) < 0 && tries < WAIT_TRIES; tries++)
        nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
    snprintf(path, BLOCK_PATH_MAX, "/dev/vd%c", 'a' + (letter < 0 ? 0 : letter));
    return letter >= 0;
}
