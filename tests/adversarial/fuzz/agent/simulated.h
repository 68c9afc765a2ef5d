/* The little kernel under the fuzzed agent. Included before each of the agent's sources: their system calls go to it.
 *
 * Everything happens in memory and by the fuzzer's orders, so that an execution takes microseconds, an input
 * always does the same, and nothing of this machine is touched: no process is started, no file written, no
 * clock set. The system's headers come first, because the names below are theirs.
 */
#ifndef RAMET_SIMULATED_H
#define RAMET_SIMULATED_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "link/message.h"
#include "link/port.h"
#include "link/wire.h"

/* Windows, frames and buffers are this much smaller than the agent's own, all in proportion: what happens at
 * their edges is the same, and an execution moves kilobytes where it would move megabytes. SCALE=1: its own. */
#ifndef SCALE
#define SCALE 16
#endif
#if SCALE != 1
#undef OUTPUT_WINDOW
#undef STDIN_WINDOW
#undef WIRE_PAYLOAD_MAX
#undef PORT_DATA_CHUNK
#define OUTPUT_WINDOW (262144u / SCALE)
#define STDIN_WINDOW (65536u / SCALE)
#define WIRE_PAYLOAD_MAX (65536u / SCALE)
#define PORT_DATA_CHUNK (32768u / SCALE)
#endif

ssize_t sim_read(int fd, void *data, size_t count);
ssize_t sim_write(int fd, const void *data, size_t count);
int sim_close(int fd);
int sim_accept4(int listener, struct sockaddr *address, socklen_t *length, int flags);
int sim_open(const char *path, int flags, ...);
int sim_pipe2(int fds[2], int flags);
int sim_fcntl(int fd, int command, ...);
int sim_ioctl(int fd, unsigned long request, ...);
int sim_epoll_ctl(int set, int operation, int fd, struct epoll_event *event);
int sim_clock_gettime(clockid_t clock, struct timespec *time);
int sim_clock_settime(clockid_t clock, const struct timespec *time);
int sim_kill(pid_t pid, int number);
int sim_rename(const char *from, const char *to);
int sim_unlink(const char *path);
int sim_mkdir(const char *path, mode_t mode);
int sim_sethostname(const char *name, size_t length);
int sim_gethostname(char *name, size_t length);
ssize_t sim_getrandom(void *data, size_t count, unsigned flags);
int sim_socket(int family, int type, int protocol);
ssize_t sim_pread(int fd, void *data, size_t count, off_t at);
ssize_t sim_pwrite(int fd, const void *data, size_t count, off_t at);
int sim_ftruncate(int fd, off_t length);
int sim_lstat(const char *path, struct stat *found);
int sim_fstat(int fd, struct stat *found);
int sim_symlink(const char *target, const char *path);
int sim_access(const char *path, int mode);

/* The child between fork and execve runs here, in place, until it would execute or end: then it is as if fork
 * returned in the parent. A buffer of its own for what it changes is the caller's business. */
extern jmp_buf sim_child;
pid_t sim_fork(bool child_has_run);
void *sim_child_memory(size_t count, size_t size);
char *sim_child_copy(const char *text);
int sim_child_step(void);
void sim_look_at(const void *data, size_t length);
int sim_dup2(int from, int to);
extern char **sim_environ;
int sim_execvp(const char *file, char *const argv[]);
_Noreturn void sim_exit(int code);

#define read sim_read
#define write sim_write
#define close sim_close
#define accept4 sim_accept4
#define open sim_open
#define pipe2 sim_pipe2
#define fcntl sim_fcntl
#define ioctl sim_ioctl
#define epoll_ctl sim_epoll_ctl
#define clock_gettime sim_clock_gettime
#define clock_settime sim_clock_settime
#define kill sim_kill
#define rename sim_rename
#define unlink sim_unlink
#define mkdir sim_mkdir
#define sethostname sim_sethostname
#define gethostname sim_gethostname
#define getrandom sim_getrandom
#define socket sim_socket
#define pread sim_pread
#define pwrite sim_pwrite
#define ftruncate sim_ftruncate
#define lstat sim_lstat
#define stat(path, found) sim_lstat(path, found)
#define symlink sim_symlink
#define access sim_access
#define fstat sim_fstat

#define fork() (setjmp(sim_child) == 0 ? sim_fork(false) : sim_fork(true))
#define calloc(count, size) sim_child_memory(count, size)
#define malloc(size) sim_child_memory(1, size)
#define strdup(text) sim_child_copy(text)
#define execvp sim_execvp
#define _exit sim_exit
#define signal(number, action) ((void)(number), (void)(action))
#define sigprocmask(how, set, old) ((void)(how), (void)(set))
#define setsid() ((void)0)
#define umask(mask) ((void)(mask))
#define dup2 sim_dup2
#define environ sim_environ
#define chdir(path) ((void)strlen(path), sim_child_step())
#define setgroups(count, groups) (sim_look_at(groups, (count) * sizeof *(groups)), sim_child_step())
#define fchown(fd, user, group) ((void)(fd), (void)(user), (void)(group), sim_child_step())
#define setgid(group) ((void)(group), sim_child_step())
#define setuid(user) ((void)(user), sim_child_step())

#endif
