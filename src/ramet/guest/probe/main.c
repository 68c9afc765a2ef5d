/* The probe: a guest that does nothing but answer. Everything is polled; when there is nothing to do it halts. */
#include "balloon.h"
#include "block.h"
#include "command.h"
#include "machine.h"
#include "session.h"
#include "vsock.h"

#define LAST_WORDS_NS 200000000u

static bool turn(void) {
    bool any = vsock_receive(session_hang_up);
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        any = session_work(connection_at(i)) || any;
    any = commands_work() || any;
    return vsock_send() || any;
}

/* The answer to SHUTDOWN goes out before the guest goes down, unless nobody takes it. */
static _Noreturn void go_down(void) {
    uint64_t deadline_ns = machine_monotonic_ns() + LAST_WORDS_NS;
    while ((turn() || !vsock_sent_all()) && machine_monotonic_ns() < deadline_ns)
        ;
    machine_say(session_shutdown_wish() == POWER_OFF ? "ramet: power off\n" : "ramet: reboot\n");
    machine_reset();
}

_Noreturn void probe_main(const void *boot_params);
_Noreturn void probe_main(const void *boot_params) {
    machine_init(boot_params);
    block_init();
    balloon_init();
    if (!vsock_init()) {
        machine_say("probe: no vsock device with an interrupt below 16\n");
        machine_reset();
    }
    machine_say("probe: ready\n");
    for (;;) {
        if (!turn())
            machine_idle();
        if (session_shutdown_wish() != STAY)
            go_down();
    }
}
