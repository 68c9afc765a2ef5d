#include "init/power.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "init/cmdline.h"
#include "init/console.h"
#include "init/disks.h"
#include "init/program.h"
#include "init/root.h"

#define GRACE_MS 2000 /* between SIGTERM and SIGKILL for processes that don't end at once */
#define CONSOLE_MS 2000 /* for the last line to leave the console's buffer */
#define NO_POWER_SWITCH "ramet.power_off=reset"

/* Until every child is gone or the time is over. As PID 1 every process ends up as a child. */
static void wait_for_all(int limit_ms) {
    struct timespec now, end;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += limit_ms / 1000;
    for (;;) {
        pid_t pid;
        while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
            ;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (pid < 0 || now.tv_sec > end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec >= end.tv_nsec))
            return;
        sigtimedwait(&child, NULL, &(struct timespec){.tv_nsec = 100000000});
    }
}

static bool has_power_switch(void) {
    char line[COMMAND_LINE_MAX];
    init_command_line(line, sizeof line);
    return !init_has_argument(line, NO_POWER_SWITCH);
}

/* In a separate process: a console whose output somebody has stopped takes nothing, and would keep us for ever. The text
 * there had perhaps no end of line. */
static void say_at_the_end(const char *text) {
    pid_t pid = fork();
    if (pid == 0) {
        init_say("\n%s", text);
        tcdrain(STDERR_FILENO);
        _exit(0);
    }
    if (pid > 0)
        wait_for_all(CONSOLE_MS);
}

void init_shutdown(enum shutdown_wish wish, const char *last_words) {
    bool by_reset = wish == REBOOT || (wish == POWER_OFF && !has_power_switch());
    sync();
    kill(-1, SIGTERM);
    kill(-1, SIGCONT); /* a stopped process doesn't see the first */
    wait_for_all(GRACE_MS);
    kill(-1, SIGKILL);
    wait_for_all(GRACE_MS);
    if (last_words != NULL)
        say_at_the_end(last_words);
    disks_leave();
    root_leave();
    if (by_reset && wish == POWER_OFF)
        say_at_the_end("ramet: power off");
    sync();
    reboot(by_reset ? RB_AUTOBOOT : wish == HALT ? RB_HALT_SYSTEM : RB_POWER_OFF);
    init_say("ramet: reboot(2): %s", strerror(errno));
}

void init_ask_for_shutdown(enum shutdown_wish wish) {
    program_run((const char *const[]){wish == REBOOT ? "reboot" : wish == HALT ? "halt" : "poweroff", NULL});
}
