/* The simulated kernel: names, clocks, processes, and the child between fork and execve. */
#include "simulated.h"

#include "simulation.h"

#undef calloc /* here the real one is meant */

enum { ALLOCATIONS = 64, KILLED = 512 };

static char hostname[65];
static uint64_t clock_ns, offset_ns;
static pid_t last_pid;
static pid_t killed[KILLED];
static int killed_count;
static void *allocations[ALLOCATIONS];
static int allocated;

bool sim_in_child;
char **sim_environ;
jmp_buf sim_child;

void sim_machine_begin(void) {
    clock_ns = 1000000000u;
    offset_ns = 1700000000ull * 1000000000u;
    last_pid = 100;
    killed_count = 0;
    hostname[0] = '\0';
}

void sim_machine_end(void) {
    while (allocated > 0)
        free(allocations[--allocated]);
}

void sim_advance_ms(uint32_t ms) { clock_ns += (uint64_t)ms * 1000000u; }

/* --- names, clocks, the network -------------------------------------------------------------------------- */

int sim_sethostname(const char *name, size_t length) {
    if (sim_fails() || length >= sizeof hostname)
        return -1;
    memcpy(hostname, name, length);
    hostname[length] = '\0';
    return 0;
}

int sim_gethostname(char *name, size_t length) {
    if (sim_fails())
        return -1;
    strncpy(name, hostname, length);
    return 0;
}

int sim_clock_gettime(clockid_t clock, struct timespec *time) {
    uint64_t now = clock == CLOCK_REALTIME ? clock_ns + offset_ns : clock_ns;
    *time = (struct timespec){.tv_sec = (time_t)(now / 1000000000u), .tv_nsec = (long)(now % 1000000000u)};
    return 0;
}

int sim_clock_settime(clockid_t clock, const struct timespec *time) {
    (void)clock;
    if (time->tv_sec < 0 || time->tv_nsec < 0 || time->tv_nsec > 999999999)
        abort();
    if (sim_fails())
        return -1;
    if (time->tv_sec > INT64_MAX / 1000000000) { /* settimeofday(2): beyond what the kernel's own can hold */
        errno = EINVAL;
        return -1;
    }
    offset_ns = (uint64_t)time->tv_sec * 1000000000u - clock_ns;
    return 0;
}

ssize_t sim_getrandom(void *data, size_t count, unsigned flags) {
    (void)flags;
    if (sim_fails())
        return -1;
    memset(data, 0x7d, count);
    return (ssize_t)count;
}

/* --- processes ------------------------------------------------------------------------------------------- */

pid_t sim_fork(bool child_has_run) {
    sim_in_child = false;
    if (child_has_run) {
        sim_machine_end();
        return ++last_pid;
    }
    if (sim_fails())
        return -1;
    sim_in_child = true;
    return 0;
}

void *sim_child_memory(size_t count, size_t size) {
    if (sim_fails())
        return NULL;
    if (allocated == ALLOCATIONS)
        abort();
    return allocations[allocated++] = calloc(count, size);
}

char *sim_child_copy(const char *text) {
    char *copy = sim_child_memory(strlen(text) + 1, 1);
    return copy != NULL ? strcpy(copy, text) : NULL;
}

void sim_look_at(const void *data, size_t length) {
    volatile unsigned char sum = 0;
    for (size_t i = 0; i < length; i++)
        sum = (unsigned char)(sum + ((const unsigned char *)data)[i]);
}

int sim_child_step(void) { return sim_fails() ? -1 : 0; }

int sim_execvp(const char *file, char *const argv[]) {
    volatile size_t octets = strlen(file);
    for (char *const *argument = argv; *argument != NULL; argument++)
        octets += strlen(*argument);
    for (char **variable = sim_environ; *variable != NULL; variable++)
        octets += strlen(*variable);
    (void)octets;
    if (sim_fails())
        return -1;
    longjmp(sim_child, 1);
}

void sim_exit(int code) {
    (void)code;
    longjmp(sim_child, 1);
}

int sim_kill(pid_t pid, int number) {
    pid_t process = pid < 0 ? -pid : pid;
    if (process <= 100 || process > last_pid || number < 1 || number >= NSIG)
        abort(); /* a signal to something that isn't a command, such as everything (-1) */
    if (number == SIGKILL && killed_count < KILLED)
        killed[killed_count++] = process;
    return sim_fails() ? -1 : 0;
}

bool sim_was_killed(pid_t pid) {
    for (int i = 0; i < killed_count; i++)
        if (killed[i] == pid)
            return true;
    return false;
}
