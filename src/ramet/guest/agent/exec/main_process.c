#include "exec/main_process.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

#include "exec/command_table.h"
#include "loop/events.h"

#define LOOK_MS 1000u
#define LAST_MS 1000u /* for a killed process to be gone, and its client to take what it wrote */

static bool is_over;
static int status;
static uint64_t kill_at_ns, leave_at_ns; /* 0: not yet */

void main_process_init(void) {
    is_over = false;
    kill_at_ns = leave_at_ns = 0;
}

static struct command *find(void) {
    for (int i = 0; i < commands_used; i++)
        if (commands[i].pid != 0 && commands[i].is_main && !commands[i].refused)
            return &commands[i];
    return NULL;
}

bool main_process_is_there(void) { return find() != NULL; }

bool main_process_has_ended(void) { return is_over; }

void main_process_is_over(int wait_status) {
    is_over = true;
    status = wait_status;
}

const char *main_process_last_words(void) {
    static char text[64];
    const struct command *command = find();
    if (!is_over && (command == NULL || !command->ended))
        return NULL;
    int end = is_over ? status : command->wait_status;
    snprintf(text, sizeof text, "ramet: the main process ended: %s %d", WIFSIGNALED(end) ? "signal" : "exit",
             WIFSIGNALED(end) ? WTERMSIG(end) : WEXITSTATUS(end));
    return text;
}

bool main_process_stop(uint32_t grace_ms) {
    struct command *command = find();
    if (command == NULL)
        return true;
    uint64_t now = events_lived_ns(), until = now + grace_ms * 1000000ull;
    if (kill_at_ns == 0 && !command->ended) {
        /* It alone, as every other init does it: its children are its own business. */
        kill(command->pid, command->stop_signal);
        kill(command->pid, SIGCONT); /* a stopped process doesn't see the first */
    }
    if (kill_at_ns == 0 || until < kill_at_ns)
        kill_at_ns = until;
    if (leave_at_ns == 0 && (command->ended || now >= kill_at_ns)) {
        if (!command->ended)
            kill(command->pid, SIGKILL);
        leave_at_ns = now + LAST_MS * 1000000ull;
    }
    return leave_at_ns != 0 && now >= leave_at_ns;
}

int main_process_time_out(void) {
    if (kill_at_ns == 0)
        return -1;
    uint64_t now = events_lived_ns(), next = leave_at_ns != 0 ? leave_at_ns : kill_at_ns;
    if (next <= now)
        return 0;
    uint64_t wait_ms = (next - now) / 1000000u + 1;
    return (int)(wait_ms < LOOK_MS ? wait_ms : LOOK_MS);
}
