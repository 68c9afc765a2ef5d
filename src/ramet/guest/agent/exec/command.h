/* Commands of EXEC: what clients ask of them, time limits and ends. */
#ifndef RAMET_COMMAND_H
#define RAMET_COMMAND_H

#include "link/port.h"

/* EXEC and what a client sends on its stream. Answers and errors are queued on the port. */
void command_exec(struct port *port, struct wire_frame *frame);
void command_stdin(struct port *port, struct wire_frame *frame);
void command_stdin_eof(struct port *port, struct wire_frame *frame);
void command_signal(struct port *port, struct wire_frame *frame);
void command_credit(struct port *port, struct wire_frame *frame);

/* The commands of a port's session lose their client and keep running. */
void commands_orphan(int port_index);
void commands_orphan_all_but(int port_index);

void command_event(int kind, uint32_t index);
void command_reaped(int pid, int wait_status);

/* Kills what is over its time. Milliseconds until the next one is, -1 when none has a limit. */
int commands_time_out(void);

/* LIST_DONE's fields. */
void commands_list(struct wire_writer *writer);

#endif
