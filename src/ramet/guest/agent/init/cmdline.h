/* The kernel's arguments. */
#ifndef RAMET_CMDLINE_H
#define RAMET_CMDLINE_H

#include <stdbool.h>
#include <stddef.h>

#define COMMAND_LINE_MAX 4096 /* twice what the kernel keeps: COMMAND_LINE_SIZE is 2048 on both architectures */

/* The kernel's arguments, as /proc/cmdline has them; empty where they can't be read. */
void init_command_line(char *line, size_t size);

/* True when `word` is one of the arguments in `line`, as /proc/cmdline has them. */
bool init_has_argument(const char *line, const char *word);

/* The next argument in `*line` that begins with `name` (`ramet.disk=`): `value` is what is behind that, "" when it has no
 * room, and `*line` is the rest. False when there is none. */
bool init_next_argument(const char **line, const char *name, char *value, size_t size);

#endif
