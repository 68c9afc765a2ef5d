/* Filesystems in RAM, which together leave room for programs, however full they are. */
#ifndef RAMET_MEMORY_H
#define RAMET_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

/* How much of `free_bytes`, the memory that is free when the guest boots, filesystems may take. */
struct memory_shares {
    uint64_t files_bytes; /* `/`, /tmp and /dev/shm, together */
    uint64_t run_bytes;   /* /run: its own, so that a program that fills the others doesn't stop the system */
    uint64_t files_count, run_count;
};

struct memory_shares memory_shares_of(uint64_t free_bytes);

/* /dev, /run, /tmp, /dev/shm as filesystems in RAM; `/`, where it is one, gets a limit. After /dev and /proc. */
void memory_filesystems(void);

/* A root in RAM takes its `bytes` from the others' share. */
void memory_give_to_root(uint64_t bytes);

#endif
