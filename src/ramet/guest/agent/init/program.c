#include "init/program.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "init/console.h"
#include "init/oom.h"

void program_run(const char *const argv[]) {
    pid_t pid = fork();
    if (pid != 0)
        return;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setsid();
    oom_score(OOM_AS_OTHERS);
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/root", 1);
    execvp(argv[0], (char *const *)(uintptr_t)argv);
    init_say("ramet: %s: %s", argv[0], strerror(errno));
    _exit(127);
}
