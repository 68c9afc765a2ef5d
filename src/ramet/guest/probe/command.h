/* What EXEC runs: the probe's few commands. They take turns, so that a long one holds up nobody. */
#ifndef PROBE_COMMAND_H
#define PROBE_COMMAND_H

#include "connection.h"

/* Errors of the protocol carry Linux's numbers. */
enum error {
    E_NO_ENTRY = 2,
    E_AGAIN = 11,
    E_BUSY = 16,
    E_INVALID = 22,
    E_NO_CALL = 38,
    E_PROTOCOL = 71,
    E_BAD_MESSAGE = 74,
    E_SIZE = 90,
};

void command_exec(struct connection *connection, const struct wire_frame *frame);
void command_stdin(struct connection *connection, const struct wire_frame *frame);
void command_signal(struct connection *connection, const struct wire_frame *frame);
void command_credit(struct connection *connection, const struct wire_frame *frame);

/* A piece of work for each running command whose client takes its output. True when there was any. */
bool commands_work(void);
/* Their session is over: they keep running, and nobody hears of them. */
void commands_orphan(const struct connection *connection);
void commands_orphan_all_but(const struct connection *connection);
void commands_list(struct wire_writer *writer);

#endif
