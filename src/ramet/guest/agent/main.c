/* The agent: one thread, one epoll set. As PID 1 it is the guest's init too. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "exec/command.h"
#include "exec/command_table.h"
#include "exec/drain.h"
#include "exec/main_process.h"
#include "exec/pump.h"
#include "exec/start.h"
#include "identity/addresses.h"
#include "identity/identity.h"
#include "identity/identity_files.h"
#include "init/console.h"
#include "init/disks.h"
#include "init/init.h"
#include "init/modules.h"
#include "init/power.h"
#include "init/root.h"
#include "link/message.h"
#include "link/transports.h"
#include "loop/events.h"
#include "requests.h"
#include "session.h"

#define RESCAN_MS 100     /* only where no uevents can be had */
#define RESCAN_TIMES 300
#define BATCH 32

static int listener = -1;
static bool is_on_socket; /* and so in a machine that isn't its own */

static enum shutdown_wish wish_of(uint32_t signal_number) {
    switch (signal_number) { /* as busybox's reboot, poweroff and halt tell an init */
    case SIGTERM:
    case SIGINT:
        return REBOOT;
    case SIGUSR1:
        return HALT;
    case SIGUSR2:
        return POWER_OFF;
    }
    return STAY;
}

static enum shutdown_wish take_signals(int fd) {
    struct signalfd_siginfo info;
    enum shutdown_wish wish = STAY;
    while (read(fd, &info, sizeof info) == (ssize_t)sizeof info)
        if (info.ssi_signo != SIGCHLD)
            wish = wish_of(info.ssi_signo);
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        command_reaped(pid, status);
    return wish;
}

/* Its answer should reach the host before the guest is gone: the driver takes it at once or within this time. */
static void flush_all(void) {
    for (int tries = 0; tries < 20; tries++) {
        bool waiting = false;
        for (int i = 0; i < PORTS_MAX; i++) {
            struct port *port = port_at(i);
            port->writable = true;
            port_flush(port);
            waiting = waiting || (port->fd >= 0 && port->out_at < port->out_length);
        }
        if (!waiting)
            return;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}

static void leave(enum shutdown_wish wish, bool is_init) {
    const char *last_words = main_process_last_words();
    flush_all();
    root_say_if_full();
    identity_leave();
    if (!is_init && last_words != NULL)
        init_say("\n%s", last_words);
    if (is_init)
        init_shutdown(wish, last_words);
    else if (is_on_socket)
        exit(0);
    else
        init_ask_for_shutdown(wish);
}

/* One round of work for everything that is ready. True when anything got done: then there may be more. */
static bool work(void) {
    bool progress = false;
    for (int i = 0; i < PORTS_MAX; i++)
        if (port_at(i)->fd >= 0)
            progress |= port_receive(port_at(i), requests_frame, session_hang_up);
    progress |= commands_pump();
    for (int i = 0; i < PORTS_MAX; i++)
        if (port_at(i)->fd >= 0)
            progress |= port_flush(port_at(i));
    return progress;
}

/* As soon as the kernel knows vsock, and so before the driver of its transport is loaded: a connection that the VMM
 * holds back until there is a driver is then answered at once. */
static void listen_to_host(void) {
    if (listener < 0 && (listener = ports_listen_vsock()) < 0 && errno != ENOENT)
        init_say("ramet: listen on vsock: %s", strerror(errno));
}

static int look_for_ports(void) {
    listen_to_host();
    return ports_scan();
}

static int sooner(int one_ms, int other_ms) {
    return one_ms < 0 || (other_ms >= 0 && other_ms < one_ms) ? other_ms : one_ms;
}

static _Noreturn void serve(int signals, int uevents, bool is_init) {
    struct epoll_event events[BATCH];
    enum shutdown_wish wanted = STAY, done = STAY;
    int rescans = uevents < 0 && listener < 0 ? RESCAN_TIMES : 0;
    bool busy = true;
    for (;;) {
        int timeout_ms = sooner(sooner(commands_time_out(), sessions_time_out()), main_process_time_out());
        if (rescans > 0 && (timeout_ms < 0 || timeout_ms > RESCAN_MS))
            timeout_ms = RESCAN_MS;
        int count = events_wait(events, BATCH, busy ? 0 : timeout_ms);
        enum shutdown_wish wish = STAY;
        for (int i = 0; i < count; i++) {
            uint32_t index = event_index(&events[i]);
            enum event_kind kind = event_kind(&events[i]);
            if (kind == E_SIGNAL)
                wish = take_signals(signals);
            else if (kind == E_UEVENT && ports_uevent(uevents))
                look_for_ports();
            else if (kind == E_LISTENER)
                ports_accept(listener, session_end);
            else if (kind == E_ADDRESSES)
                addresses_event();
            else if (kind == E_IDENTITY_FILES)
                identity_files_event();
            else if (kind == E_PORT)
                port_event(port_at((int)index), events[i].events);
            else if (kind == E_DRAIN)
                drain_event(index);
            else if (kind >= E_START_REPORT)
                command_event(kind, index);
        }
        if (rescans > 0 && count == 0 && !busy)
            rescans = look_for_ports() > 0 || listener >= 0 ? 0 : rescans - 1;
        busy = work();
        if (wish == STAY)
            wish = requests_shutdown_wish();
        if (wish == STAY && wanted == STAY && main_process_has_ended())
            wish = POWER_OFF;
        if (wish != STAY)
            wanted = wish;
        if (wanted != done && main_process_stop(requests_grace_ms())) {
            leave(wanted, is_init);
            done = wanted;
        }
    }
}

static int watch_signals(bool is_init) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    if (is_init) {
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGINT);
        sigaddset(&set, SIGUSR1);
        sigaddset(&set, SIGUSR2);
    }
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return fd >= 0 && events_watch(fd, E_SIGNAL, 0, EPOLLIN) == 0 ? fd : -1;
}

/* Started without them, a descriptor of ours would become some command's stdio. */
static void occupy_stdio(void) {
    int fd;
    do
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= 2);
    if (fd > 2)
        close(fd);
}

static int usage(const char *program) {
    init_say("usage: %s [--socket PATH]\n"
             "Serves ramet's protocol on the virtio-serial ports ramet.agent.N and to its host over vsock,\n"
             "or on a UNIX socket.\n"
             "On a socket it changes nothing of its machine: no identity, no shutdown.", program);
    return 2;
}

int main(int argc, char **argv) {
    bool is_init = getpid() == 1;
    const char *socket_path = NULL;
    /* To init the kernel passes all that it didn't understand itself: no options of ours. */
    if (!is_init && argc == 2 && strcmp(argv[1], "--version") == 0)
        return printf("ramet agent %s, protocol %d\n", AGENT_VERSION, PROTOCOL_VERSION) < 0;
    if ((is_on_socket = !is_init && argc == 3 && strcmp(argv[1], "--socket") == 0))
        socket_path = argv[2];
    else if (!is_init && argc != 1)
        return usage(argv[0]);

    if (is_init)
        init_filesystems();
    else
        occupy_stdio();
    int loop = events_init(), signals = watch_signals(is_init);
    if (loop < 0 || signals < 0)
        init_say("ramet: epoll or signalfd: %s", strerror(errno));
    start_init(socket_path == NULL);
    ports_init();
    drain_init();
    commands_init(requests_unshare);
    main_process_init();
    identity_init();

    int uevents = -1;
    if (socket_path != NULL) {
        requests_forbid_machine_changes();
        if ((listener = ports_listen(socket_path)) < 0) {
            init_say("ramet: listen on %s: %s", socket_path, strerror(errno));
            return 1;
        }
    } else {
        uevents = ports_watch_uevents(); /* before the drivers: no port may come unseen */
        listen_to_host();
    }
    if (is_init) {
        init_modules(listen_to_host);
        if (!root_enter() || !disks_mount()) /* before anything is answered: a command finds them */
            init_shutdown(POWER_OFF, NULL);
        if (root_kind() != ROOT_INITRAMFS)
            start_in_container();
    }
    if (socket_path == NULL)
        look_for_ports();
    if (is_init)
        init_rest();
    serve(signals, uevents, is_init);
}
