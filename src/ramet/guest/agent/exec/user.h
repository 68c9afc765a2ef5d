/* Users of the guest, as Docker writes them: `name`, `uid`, `name:group`, `uid:gid` or a mixture. */
#ifndef RAMET_USER_H
#define RAMET_USER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define USER_TEXT_MAX 256
#define USER_GROUPS_MAX 32

struct person {
    uid_t uid;
    gid_t gid;
    const char *name, *home;
    gid_t groups[USER_GROUPS_MAX]; /* `gid` first */
    size_t groups_count;
};

/* Finds `user`, and for NULL or "" whom the agent itself runs as, in /etc/passwd and /etc/group: regular files alone, of
 * which the first 1 MiB counts. Nothing else of the guest has a say. 0, or errno and `why`. Memory isn't given back: this is
 * for a process that becomes that user. */
int user_find(const char *user, struct person *person, char *why, size_t size);

/* Takes up its groups, group and number. 0, or errno. */
int user_become(const struct person *person);

#endif
