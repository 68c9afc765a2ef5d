#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "disks.h"
#include "oom.h"

#define MODULES_FILE "/etc/ramet/modules"
#define RC_FILE "/etc/ramet/rc"
#define GRACE_MS 2000 /* between SIGTERM and SIGKILL for processes that don't end at once */
#define CONSOLE_MS 2000 /* for the last line to leave the console's buffer */
#define NO_POWER_SWITCH "ramet.power_off=reset"

void init_say(const char *format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length < 0)
        return;
    if (length > (int)sizeof line - 2)
        length = (int)sizeof line - 2;
    line[length++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)length);
    (void)ignored;
}

static void mount_at(const char *target, const char *type, unsigned long flags, const char *options) {
    mkdir(target, 0755);
    if (mount(type, target, type, flags, options) < 0 && errno != EBUSY) /* EBUSY: the kernel or initrd did it */
        init_say("ramet: mount %s: %s", target, strerror(errno));
}

static void open_console(void) {
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    if (fd < 0 && (fd = open("/dev/null", O_RDWR)) < 0)
        return;
    for (int i = 0; i < 3; i++)
        dup2(fd, i);
    if (fd > 2)
        close(fd);
}

void init_filesystems(void (*in_memory)(void)) {
    const unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    chmod("/", 0755); /* the kernel's rootfs begins world-writable */
    mount_at("/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    open_console();
    mount_at("/proc", "proc", safe, NULL);
    mount_at("/sys", "sysfs", safe, NULL);
    mount_at("/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666");
    in_memory();
    static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"},
                                           {"/proc/self/fd/0", "/dev/stdin"},
                                           {"/proc/self/fd/1", "/dev/stdout"},
                                           {"/proc/self/fd/2", "/dev/stderr"}};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
            init_say("ramet: %s: %s", links[i][1], strerror(errno));
}

static void load_module(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
        init_say("ramet: module %s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

void init_modules_of(const char *path, void (*loaded)(void)) {
    FILE *list = fopen(path, "re");
    char line[512];
    if (list == NULL)
        return;
    while (fgets(line, sizeof line, list) != NULL) {
        line[strcspn(line, "\r\n")] = '\0';
        if (line[0] == '\0' || line[0] == '#')
            continue;
        load_module(line);
        if (loaded != NULL)
            loaded();
    }
    fclose(list);
}

void init_modules(void (*loaded)(void)) { init_modules_of(MODULES_FILE, loaded); }

static void loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
        request.ifr_flags |= IFF_UP | IFF_RUNNING;
        if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
            init_say("ramet: lo: %s", strerror(errno));
    }
    close(fd);
}

static void take_hostname(void) {
    char name[66];
    FILE *file = fopen("/etc/hostname", "re");
    if (file == NULL)
        return;
    if (fgets(name, sizeof name, file) != NULL) {
        name[strcspn(name, "\r\n")] = '\0';
        if (name[0] != '\0' && sethostname(name, strlen(name)) < 0)
            init_say("ramet: hostname: %s", strerror(errno));
    }
    fclose(file);
}

static void run(const char *const argv[]) {
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

void init_rest(void) {
    loopback_up();
    take_hostname();
    if (access(RC_FILE, X_OK) == 0)
        run((const char *const[]){RC_FILE, NULL});
}

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

bool init_has_argument(const char *line, const char *word) {
    static const char spaces[] = " \t\r\n";
    size_t length = strlen(word), next;
    for (; *line != '\0'; line += next + strspn(line + next, spaces)) {
        next = strcspn(line, spaces);
        if (next == length && memcmp(line, word, length) == 0)
            return true;
    }
    return false;
}

void init_command_line(char *line, size_t size) {
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, line, size - 1);
    if (fd >= 0)
        close(fd);
    line[length < 0 ? 0 : length] = '\0';
}

static bool has_power_switch(void) {
    char line[COMMAND_LINE_MAX];
    init_command_line(line, sizeof line);
    return !init_has_argument(line, NO_POWER_SWITCH);
}

/* In a process of its own: a console whose output somebody has stopped takes nothing, and would keep us for ever. */
static void say_power_off(void) {
    pid_t pid = fork();
    if (pid == 0) {
        init_say("\nramet: power off"); /* whatever stood there had perhaps no end of line */
        tcdrain(STDERR_FILENO);
        _exit(0);
    }
    if (pid > 0)
        wait_for_all(CONSOLE_MS);
}

void init_shutdown(enum shutdown_wish wish) {
    bool by_reset = wish == REBOOT || (wish == POWER_OFF && !has_power_switch());
    sync();
    kill(-1, SIGTERM);
    kill(-1, SIGCONT); /* a stopped process doesn't see the first */
    wait_for_all(GRACE_MS);
    kill(-1, SIGKILL);
    wait_for_all(GRACE_MS);
    disks_leave();
    if (by_reset && wish == POWER_OFF)
        say_power_off();
    sync();
    reboot(by_reset ? RB_AUTOBOOT : wish == HALT ? RB_HALT_SYSTEM : RB_POWER_OFF);
    init_say("ramet: reboot(2): %s", strerror(errno));
}

void init_ask_for_shutdown(enum shutdown_wish wish) {
    run((const char *const[]){wish == REBOOT ? "reboot" : wish == HALT ? "halt" : "poweroff", NULL});
}
