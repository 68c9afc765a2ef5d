/* Why a program can't be executed: an errno of execve(2) is often about another file than the one that was named. */
#ifndef RAMET_EXPLAIN_H
#define RAMET_EXPLAIN_H

#include <stdbool.h>
#include <stddef.h>

/* Writes `program: reason` to `text`. The program is looked up along PATH, as execvp(3) does. */
void explain_execve(char *text, size_t size, const char *program, int error);

/* True for a program that has to be process 1 of its machine, such as systemd, and `text` says so then. */
bool explain_init(char *text, size_t size, const char *program);

#endif
