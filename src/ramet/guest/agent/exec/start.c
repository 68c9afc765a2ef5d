#include "exec/start.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "exec/explain.h"
#include "exec/user.h"
#include "init/files.h"
#include "init/oom.h"
#include "init/root.h"
#include "link/message.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

enum { F_ARGV = 1, F_ENV, F_CWD, F_USER, F_TIMEOUT, F_FLAGS, F_STOP_SIGNAL };

const char *start_parse(const struct wire_frame *frame, struct start_request *request) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    uint64_t number = 0;
    int more;
    bool argv = false;
    *request = (struct start_request){
        .payload = frame->payload, .length = frame->length, .stop_signal = SIGTERM};
    while ((more = wire_next(&reader, &field)) > 0) {
        bool text = field.tag >= F_ARGV && field.tag <= F_USER;
        if (text && memchr(field.value, 0, field.length) != NULL)
            return "a NUL in argv, env, cwd or user";
        switch (field.tag) {
        case F_ARGV:
            argv = true;
            break;
        case F_ENV:
            if (field.length == 0 || field.value[0] == '=' || memchr(field.value, '=', field.length) == NULL)
                return "env is not K=V";
            break;
        case F_TIMEOUT:
            if (!wire_number(&field, 8, &request->timeout_ms))
                return "timeout is not a u64";
            break;
        case F_FLAGS:
            if (!wire_number(&field, 4, &number))
                return "flags are not a u32";
            request->flags = (uint32_t)number;
            break;
        case F_STOP_SIGNAL:
            if (!wire_number(&field, 4, &number) || number < 1 || number > LAST_SIGNAL)
                return "not a signal to stop it by";
            request->stop_signal = (int)number;
            break;
        }
    }
    if (more < 0)
        return "malformed fields";
    return argv ? NULL : "argv is empty";
}

static struct rlimit files_at_start;
static bool has_files_limit, is_protected, in_container;

void start_init(bool protect) {
    is_protected = protect && oom_score(OOM_NEVER);
    has_files_limit = getrlimit(RLIMIT_NOFILE, &files_at_start) == 0;
    struct rlimit most = files_at_start;
    most.rlim_cur = most.rlim_max;
    if (!has_files_limit || setrlimit(RLIMIT_NOFILE, &most) < 0)
        has_files_limit = false; /* then it is as it was, for commands too */
}

void start_in_container(void) { in_container = true; }

static _Noreturn void report_and_exit(int report, struct start_report *message) {
    ssize_t ignored = write(report, message, sizeof *message);
    (void)ignored;
    _exit(127);
}

static _Noreturn void give_up(int report, int error, enum start_step step, const char *what, const char *object) {
    struct start_report message = {.error = error, .step = step};
    snprintf(message.text, sizeof message.text, "%s%.200s: %s%s", what, object, strerror(error), root_advice(error));
    report_and_exit(report, &message);
}

static _Noreturn void give_up_program(int report, int error, const char *program) {
    struct start_report message = {.error = error, .step = STEP_EXECVE};
    explain_execve(message.text, sizeof message.text, program, error);
    report_and_exit(report, &message);
}
/* --- in the child ---------------------------------------------------------------------------------------- */

struct wanted {
    char **argv, **env;
    size_t argc, envc;
    const char *cwd, *user;
};

/* Ends each text in place: the octet behind it is the next field's tag, which has been read by then. */
static void collect(const struct start_request *request, struct wanted *wanted, int report) {
    size_t most = request->length / WIRE_FIELD_HEADER + 8;
    wanted->argv = calloc(most, sizeof(char *));
    wanted->env = calloc(most, sizeof(char *));
    if (wanted->argv == NULL || wanted->env == NULL)
        give_up(report, ENOMEM, STEP_SETUP, "argv", "");
    struct wire_reader reader = {request->payload, request->payload + request->length};
    struct wire_field field;
    char *open_text = NULL;
    while (wire_next(&reader, &field) > 0) {
        char *text = (char *)(uintptr_t)field.value;
        if (open_text != NULL)
            *open_text = '\0';
        open_text = text + field.length;
        if (field.tag == F_ARGV)
            wanted->argv[wanted->argc++] = text;
        else if (field.tag == F_ENV)
            wanted->env[wanted->envc++] = text;
        else if (field.tag == F_CWD)
            wanted->cwd = text;
        else if (field.tag == F_USER)
            wanted->user = text;
    }
    if (open_text != NULL)
        *open_text = '\0';
}

static void add_default(struct wanted *wanted, const char *name, const char *value, int report) {
    size_t length = strlen(name);
    for (size_t i = 0; i < wanted->envc; i++)
        if (strncmp(wanted->env[i], name, length) == 0 && wanted->env[i][length] == '=')
            return;
    char *text = malloc(length + strlen(value) + 2);
    if (text == NULL)
        give_up(report, ENOMEM, STEP_SETUP, "env", "");
    sprintf(text, "%s=%s", name, value);
    wanted->env[wanted->envc++] = text;
}

static void connect_stdio(const int stdio[3], uint32_t flags, int report) {
    for (int i = 0; i < 3; i++) {
        int fd = stdio[i];
        if (fd < 0) {
            const char *path = (flags & EXEC_CONSOLE) && i > 0 ? "/dev/console" : "/dev/null";
            fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
            if (fd < 0)
                give_up(report, errno, STEP_SETUP, "open ", path);
        }
        if (dup2(fd, i) < 0)
            give_up(report, errno, STEP_SETUP, "stdio", "");
    }
}

/* The directory that was asked for, else the user's own, else `/`. */
static bool enter(const struct wanted *wanted, const struct person *person, int *error) {
    bool entered = wanted->cwd != NULL ? chdir(wanted->cwd) == 0 : chdir(person->home) == 0 || chdir("/") == 0;
    *error = errno;
    return entered;
}

/* So that its user may open them once more, by /dev/stdout and its like. /dev/null stays everybody's. */
static void own_stdio(const struct person *person, uint32_t flags) {
    struct stat found;
    for (int fd = 0; fd < 3 && person->uid != getuid(); fd++) {
        bool is_console = fd > 0 && (flags & EXEC_MAIN) && (flags & EXEC_CONSOLE);
        if (is_console || (fstat(fd, &found) == 0 && S_ISFIFO(found.st_mode))) {
            int ignored = fchown(fd, person->uid, (gid_t)-1);
            (void)ignored;
        }
    }
}

static void refuse_init(const char *program, int report) {
    struct start_report message = {.error = EOPNOTSUPP, .step = STEP_SETUP};
    if (explain_init(message.text, sizeof message.text, program))
        report_and_exit(report, &message);
}

static _Noreturn void child(const struct start_request *request, const int stdio[3], int report) {
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    umask(022);
    if (is_protected)
        oom_score(OOM_AS_OTHERS);
    if (has_files_limit)
        setrlimit(RLIMIT_NOFILE, &files_at_start);

    struct wanted wanted = {0};
    collect(request, &wanted, report);
    connect_stdio(stdio, request->flags, report);
    bool is_main = request->flags & EXEC_MAIN;
    struct person person;
    char why[USER_TEXT_MAX] = "";
    int error = wanted.user != NULL && strlen(wanted.user) >= USER_TEXT_MAX
                    ? EINVAL
                    : user_find(wanted.user, &person, why, sizeof why);
    if (error != 0)
        give_up(report, error, STEP_USER, why[0] == '\0' ? "user " : "", why[0] == '\0' ? wanted.user : why);
    bool makes_cwd = request->flags & (EXEC_MAIN | EXEC_MAKE_CWD);
    if (makes_cwd && wanted.cwd != NULL && !files_make_directories(wanted.cwd))
        give_up(report, errno, STEP_CWD, "mkdir ", wanted.cwd);
    bool entered = (is_main || in_container) && enter(&wanted, &person, &error);
    own_stdio(&person, request->flags);
    if ((error = user_become(&person)) != 0)
        give_up(report, error, STEP_USER, "user ", wanted.user);
    if (!entered && !enter(&wanted, &person, &error))
        give_up(report, error, STEP_CWD, "chdir ", wanted.cwd != NULL ? wanted.cwd : "/");
    add_default(&wanted, "PATH", DEFAULT_PATH, report);
    add_default(&wanted, "HOME", person.home, report);
    add_default(&wanted, "USER", person.name, report);
    add_default(&wanted, "LANG", "C.UTF-8", report);
    add_default(&wanted, "TERM", "linux", report);
    environ = wanted.env; /* so that execvp looks along the command's own PATH */
    if (is_main)
        refuse_init(wanted.argv[0], report);
    execvp(wanted.argv[0], wanted.argv);
    give_up_program(report, errno, wanted.argv[0]);
}

/* --- in the agent ---------------------------------------------------------------------------------------- */

static void close_all(int *fds, int count) {
    for (int i = 0; i < count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

int start_command(const struct start_request *request, struct start_result *result) {
    enum { REPORT, REPORT_END, IN, IN_END, OUT, OUT_END, ERR, ERR_END, COUNT };
    int fds[COUNT] = {-1, -1, -1, -1, -1, -1, -1, -1};
    bool output = !(request->flags & EXEC_DETACHED);
    bool input = output && (request->flags & EXEC_STDIN);
    pid_t pid = -1;
    if (pipe2(fds + REPORT, O_CLOEXEC) == 0 && (!input || pipe2(fds + IN, O_CLOEXEC) == 0) &&
        (!output || (pipe2(fds + OUT, O_CLOEXEC) == 0 && pipe2(fds + ERR, O_CLOEXEC) == 0)))
        pid = fork();
    if (pid < 0) {
        int error = errno;
        close_all(fds, COUNT);
        return error;
    }
    if (pid == 0)
        child(request, (const int[]){fds[IN], fds[OUT_END], fds[ERR_END]}, fds[REPORT_END]);
    close_all((int[]){fds[REPORT_END], fds[IN], fds[OUT_END], fds[ERR_END]}, 4);
    *result = (struct start_result){
        .pid = pid, .report = fds[REPORT], .stdin_fd = fds[IN_END], .output = {fds[OUT], fds[ERR]}};
    int ours[] = {result->report, result->stdin_fd, result->output[0], result->output[1]};
    for (int i = 0; i < 4; i++)
        if (ours[i] >= 0)
            fcntl(ours[i], F_SETFL, O_NONBLOCK);
    return 0;
}
