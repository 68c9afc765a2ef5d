#include <string.h>

#include <stdint.h>

void *memcpy(void *to, const void *from, size_t count) {
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(count) : : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t count) {
    if ((uintptr_t)to - (uintptr_t)from >= count)
        return memcpy(to, from, count);
    volatile uint8_t *out = (uint8_t *)to + count; /* volatile: or the compiler makes a call of memmove of it */
    const uint8_t *in = (const uint8_t *)from + count;
    while (count-- > 0)
        *--out = *--in;
    return to;
}

void *memset(void *to, int octet, size_t count) {
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(octet) : "memory");
    return to;
}

int memcmp(const void *a, const void *b, size_t count) {
    const uint8_t *left = a, *right = b;
    for (size_t i = 0; i < count; i++)
        if (left[i] != right[i])
            return left[i] - right[i];
    return 0;
}

size_t strlen(const char *text) {
    const volatile char *end = text; /* volatile: as above */
    while (*end != '\0')
        end++;
    return (size_t)(end - text);
}
