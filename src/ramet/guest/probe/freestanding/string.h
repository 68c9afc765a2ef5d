/* What the probe has of libc: what wire.c asks for, and what compilers call by themselves. */
#ifndef PROBE_STRING_H
#define PROBE_STRING_H

#include <stddef.h>

void *memcpy(void *to, const void *from, size_t count);
void *memmove(void *to, const void *from, size_t count);
void *memset(void *to, int octet, size_t count);
int memcmp(const void *a, const void *b, size_t count);
size_t strlen(const char *text);

#endif
