#include "exec/user.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init/files.h"

#define PASSWD "/etc/passwd"
#define GROUP "/etc/group"
#define FILE_MAX (1u << 20)
#define FIELDS_MAX 7

enum { P_NAME, P_PASSWORD, P_UID, P_GID, P_GECOS, P_HOME, P_SHELL, P_LEAST = P_HOME + 1 };
enum { G_NAME, G_PASSWORD, G_GID, G_MEMBERS, G_LEAST = G_GID + 1 };

/* A file's lines, cut into fields by colons, in place. What is behind the last colon is one field. */
struct table {
    char *at, *end;
    char *field[FIELDS_MAX];
    size_t count;
};

static struct table read_table(const char *path) {
    struct stat found;
    struct table table = {0};
    int fd = files_open(path, O_RDONLY);
    if (fd < 0)
        return table;
    size_t room = fstat(fd, &found) == 0 && found.st_size < (off_t)FILE_MAX ? (size_t)found.st_size : FILE_MAX;
    char *text = malloc(room + 1);
    ssize_t length = text == NULL ? -1 : files_read(fd, text, room + 1);
    close(fd);
    if (length > 0)
        table = (struct table){.at = text, .end = text + length};
    return table;
}

/* The next line with at least `least` fields. A line with a NUL in it is none. */
static bool next_line(struct table *table, size_t least, size_t most) {
    while (table->at < table->end) {
        char *line = table->at, *end = memchr(line, '\n', (size_t)(table->end - line));
        if (end == NULL)
            end = table->end; /* where files_read has put a NUL */
        table->at = end + 1;
        if (memchr(line, '\0', (size_t)(end - line)) != NULL)
            continue;
        *end = '\0';
        for (table->count = 0; table->count < most && line != NULL;) {
            table->field[table->count++] = line;
            if (table->count < most && (line = strchr(line, ':')) != NULL)
                *line++ = '\0';
        }
        if (table->count >= least)
            return true;
    }
    return false;
}

/* Digits and nothing else, below the number that means "none". */
static bool number_of(const char *text, uint32_t *number) {
    uint64_t value = 0;
    if (*text == '\0')
        return false;
    for (; *text >= '0' && *text <= '9'; text++)
        if ((value = 10 * value + (uint64_t)(*text - '0')) >= UINT32_MAX)
            return false;
    *number = (uint32_t)value;
    return *text == '\0';
}

static bool is_digits(const char *text) { return *text != '\0' && text[strspn(text, "0123456789")] == '\0'; }

static bool find_person(const char *name, bool by_number, struct person *person) {
    struct table table = read_table(PASSWD);
    uint32_t uid, gid;
    while (next_line(&table, P_LEAST, FIELDS_MAX)) {
        if (!number_of(table.field[P_UID], &uid) || !number_of(table.field[P_GID], &gid))
            continue;
        if (by_number ? uid != person->uid : strcmp(table.field[P_NAME], name) != 0)
            continue;
        person->uid = uid;
        person->gid = gid;
        person->name = table.field[P_NAME];
        person->home = table.field[P_HOME][0] == '/' ? table.field[P_HOME] : "/";
        return true;
    }
    return false;
}

static bool find_group(const char *name, uint32_t *gid) {
    struct table table = read_table(GROUP);
    while (next_line(&table, G_LEAST, G_MEMBERS + 1))
        if (strcmp(table.field[G_NAME], name) == 0 && number_of(table.field[G_GID], gid))
            return true;
    return false;
}

static bool is_member(const char *members, const char *name) {
    size_t length = strlen(name);
    for (; *members != '\0'; members += *members == ',') {
        size_t next = strcspn(members, ",");
        if (next == length && memcmp(members, name, length) == 0)
            return true;
        members += next;
    }
    return false;
}

static void find_groups(struct person *person) {
    struct table table = read_table(GROUP);
    uint32_t gid;
    while (person->groups_count < USER_GROUPS_MAX && next_line(&table, G_MEMBERS + 1, G_MEMBERS + 1))
        if (is_member(table.field[G_MEMBERS], person->name) && number_of(table.field[G_GID], &gid) && gid != person->gid)
            person->groups[person->groups_count++] = gid;
}

/* Its own group is among the others, too: a program that gives it up, to be in another, doesn't gain what a file denies
 * to that group. */
static void take_group(struct person *person, gid_t gid) {
    person->gid = person->groups[0] = gid;
    person->groups_count = 1;
}

int user_find(const char *user, struct person *person, char *why, size_t size) {
    char *name = strdup(user != NULL ? user : ""), *group;
    uint32_t number;
    *person = (struct person){.uid = getuid(), .gid = getgid(), .name = "root", .home = "/"};
    if (name == NULL)
        return ENOMEM;
    if ((group = strchr(name, ':')) != NULL)
        *group++ = '\0';
    bool is_known, is_own = *name == '\0';
    if (is_own || is_digits(name)) {
        if (!is_own && !number_of(name, &number)) {
            snprintf(why, size, "not a user id: %s", name);
            return EINVAL;
        }
        if (!is_own) {
            person->uid = number;
            person->gid = 0;
            person->name = name;
        }
        gid_t own = getgid();
        is_known = find_person(name, true, person);
        if (is_own)
            person->gid = own;
    } else if (!(is_known = find_person(name, false, person))) {
        snprintf(why, size, "no such user: %s", name);
        return EINVAL;
    }
    if (group == NULL || *group == '\0') {
        take_group(person, person->gid);
        if (is_known)
            find_groups(person);
        return 0;
    }
    if (is_digits(group) ? !number_of(group, &number) : !find_group(group, &number)) {
        snprintf(why, size, is_digits(group) ? "not a group id: %s" : "no such group: %s", group);
        return EINVAL;
    }
    take_group(person, number);
    return 0;
}

int user_become(const struct person *person) {
    if (setgroups(person->groups_count, person->groups) < 0 && !(errno == EPERM && person->uid == getuid()))
        return errno; /* an agent without privileges may still run commands as itself */
    return setgid(person->gid) < 0 || setuid(person->uid) < 0 ? errno : 0;
}
