/* What the fuzzer orders the simulated kernel to do. */
#ifndef RAMET_SIMULATION_H
#define RAMET_SIMULATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

void sim_begin(void);
void sim_end(void);

/* A port as the agent sees it. What is written to it goes to `take`, at most `sim_port_room` octets at a time. */
struct kernel_sockaddr_vm;
void sim_port_connect(int number, const struct kernel_sockaddr_vm *from);
void sim_port_deliver(int number, const uint8_t *data, size_t length);
void sim_port_hang_up(int number);
int sim_port_index(int number); /* as what the agent watches it; -1: not */
void sim_port_room(int number, uint32_t octets);
extern void (*sim_port_take)(int number, const uint8_t *data, size_t length);

/* The nth call from now on that can fail does, once, with `error`. 0: none. */
void sim_fail(unsigned nth, int error);
void sim_advance_ms(uint32_t ms);
void sim_put_file(const char *path, const uint8_t *text, size_t length);

/* The command behind an agent's pipe: it writes, reads or closes its end. */
void sim_pipe_fill(int agents_fd, uint32_t octets, uint8_t value);
void sim_pipe_drain(int agents_fd, uint32_t octets);
void sim_pipe_abandon(int agents_fd);
bool sim_was_killed(pid_t pid);

/* Between the simulation's own two files. */
bool sim_fails(void); /* whether this call is the one that was ordered to fail; errno is set then */
extern bool sim_in_child;
void sim_machine_begin(void);
void sim_machine_end(void);

#endif
