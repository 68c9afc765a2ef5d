/* The agent under a coverage-guided fuzzer: its own sources, the whole of them but PID 1's, over a simulated kernel.
 *
 * An input is a script: what arrives on ports, as raw octets or as frames made well so that the fuzzer need not
 * find lengths and checksums of its own; what commands do; what fails. After each step the agent works until it has
 * nothing left to do, and what must hold then is checked. Steps: tests/adversarial/fuzz/corpus.py.
 */
#include "simulated.h"

#include "exec/command.h"
#include "exec/command_table.h"
#include "exec/drain.h"
#include "exec/explain.h"
#include "exec/main_process.h"
#include "exec/start.h"
#include "identity/identity.h"
#include "init/grow_disk.h"
#include "link/message.h"
#include "link/port.h"
#include "loop/kernel.h"
#include "requests.h"
#include "session.h"
#include "simulation.h"

#undef calloc
#undef malloc

static void exact_frame(struct port *port, struct wire_frame *frame);

#define main agent_main
#define requests_frame exact_frame
#include "main.c"
#undef main
#undef requests_frame

/* The first are virtio's, which stay; the others are connections, which come and go. */
enum { PORT_COUNT = 4, VIRTIO_COUNT = 2, CLIENT_COUNT = 3, STEPS_MAX = 600, ROUNDS_MAX = 20000 };

#define MUST(condition)                                                     \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "doesn't hold: %s, line %d\n", #condition, __LINE__); \
            abort();                                                        \
        }                                                                   \
    } while (0)

static uint64_t frames_handled, frames_answered;
static bool stopping;
static struct wire_decoder answers[PORT_COUNT];
static uint8_t answer_buffers[PORT_COUNT][WIRE_FRAME_MAX + 1];
static uint8_t *port_buffers[PORTS_MAX];

/* --- what isn't linked: PID 1's part --------------------------------------------------------------------- */

void init_say(const char *format, ...) { (void)format; }
void init_filesystems(void) {}
void init_modules(void (*loaded)(void)) { (void)loaded; }
void init_rest(void) {}
bool disks_mount(void) { return true; }
bool root_enter(void) { return true; }
void root_say_if_full(void) {}
enum root_kind root_kind(void) { return ROOT_DISK; }
const char *root_advice(int error) { return error == ENOSPC ? " (the guest's root is full)" : ""; }

bool root_room(struct root_room *room) {
    *room = (struct root_room){.bytes = 2, .free_bytes = 1};
    return true;
}
int grow_disk(const char *name, struct growth *growth, char *text, size_t size) {
    *growth = (struct growth){.device_bytes = 2, .filesystem_bytes = 1};
    snprintf(text, size, "%.64s: %s", name, strerror(ENODEV));
    return name[0] == 'r' ? 0 : ENODEV;
}
void init_shutdown(enum shutdown_wish wish, const char *last_words) { (void)wish, (void)last_words; }
void init_ask_for_shutdown(enum shutdown_wish wish) { (void)wish; }

/* It looks at programs of the machine that it runs on. */
void explain_execve(char *text, size_t size, const char *program, int error) {
    snprintf(text, size, "%.200s: %s", program, strerror(error));
}

bool explain_init(char *text, size_t size, const char *program) {
    snprintf(text, size, "%.200s", program);
    return strcmp(program, "init") == 0;
}

/* --- exact bounds: each payload in a block of its own, so that the sanitizer sees an octet too many ------- */

static bool has_field(const struct wire_frame *frame, uint8_t tag, uint32_t length) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    bool found = false;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        found = found || (field.tag == tag && field.length == length);
    return found && more == 0;
}

static void exact_frame(struct port *port, struct wire_frame *frame) {
    MUST(frame->length <= WIRE_PAYLOAD_MAX);
    uint8_t *copy = malloc(frame->length ? frame->length : 1);
    memcpy(copy, frame->payload, frame->length);
    frame->payload = copy;
    frames_handled++;
    enum shutdown_wish wished = requests_shutdown_wish();
    requests_frame(port, frame);
    MUST(requests_shutdown_wish() == wished || (frame->type == M_SHUTDOWN && has_field(frame, 1, 1)));
    stopping = stopping || (frame->type == M_SHUTDOWN && requests_shutdown_wish() != STAY);
    free(copy);
}

int agent_start_command(const struct start_request *request, struct start_result *result);

/* The child ends its texts in place, in the octet behind the payload too, which its frame's buffer has. */
int start_command(const struct start_request *request, struct start_result *result) {
    struct start_request copy = *request;
    uint8_t *payload = malloc(request->length + 1);
    memcpy(payload, request->payload, request->length);
    copy.payload = payload;
    int error = agent_start_command(&copy, result);
    free(payload);
    return error;
}

/* --- what the agent says --------------------------------------------------------------------------------- */

static void check_answer(const struct wire_frame *frame) {
    frames_answered++;
    MUST(frame->type >= M_WELCOME && frame->type <= M_GROW_DONE);
    MUST(frame->length <= WIRE_PAYLOAD_MAX);
    if (frame->type == M_STDOUT || frame->type == M_STDERR) {
        MUST(frame->length > 0 && frame->length <= PORT_DATA_CHUNK);
        return;
    }
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        MUST(frame->type != M_ERROR || field.tag != 2 || field.length <= ERROR_TEXT_MAX);
    MUST(more == 0);
}

static void take_answer(int number, const uint8_t *data, size_t length) {
    struct wire_frame frame;
    bool complete;
    while (length > 0) {
        size_t taken = wire_decode(&answers[number], data, length, &frame, &complete);
        data += taken;
        length -= taken;
        if (complete)
            check_answer(&frame);
    }
}

/* --- what must hold between steps ------------------------------------------------------------------------ */

static void check(void) {
    int in_session[PORTS_MAX] = {0}, open = 0, mains = 0;
    for (int i = 0; i < PORTS_MAX; i++) {
        const struct port *port = port_at(i);
        MUST(port->out_at <= port->out_length && port->out_length <= PORT_OUT_BYTES);
        MUST(!port->resumable || (port->out_kept <= port->out_at && port->in_session && port->number < 0));
        MUST(port->away_until_ns == 0 || (port->fd < 0 && port->in_session && port->resumable));
        MUST(!port->resumable || port->out_kept == port->out_length || port->out[port->out_kept] == 0x7e);
        open += port->fd >= 0;
        MUST(port->in_at <= port->in_length && port->in_length <= PORT_IN_BYTES);
        MUST(port->decoder.length <= WIRE_FRAME_MAX);
    }
    for (int i = 0; i < commands_used; i++) {
        const struct command *command = &commands[i];
        if (command->pid == 0)
            continue;
        MUST(command->port >= -1 && command->port < PORTS_MAX);
        MUST(command->stop_signal >= 1 && command->stop_signal <= (int)LAST_SIGNAL);
        mains += command->is_main && !command->refused;
        if (command->port >= 0)
            in_session[command->port]++;
        MUST(command->port < 0 || port_at(command->port)->in_session);
        MUST((uint64_t)command->held_at + command->held_length <= STDIN_WINDOW);
        MUST((uint64_t)command->held_length + command->stdin_allowed + command->stdin_taken <= STDIN_WINDOW);
        MUST(command->credit < UINT64_MAX / 2 + UINT32_MAX + 1u);
        MUST(command->argv_length <= ARGV_KEPT);
        MUST(!command->timed_out || command->ended || sim_was_killed(command->pid));
    }
    MUST(open <= PORTS_OPEN_MAX);
    MUST(mains <= 1 && main_process_is_there() == (mains == 1));
    MUST(main_process_has_ended() ? main_process_last_words() != NULL : mains == 1 || main_process_last_words() == NULL);
    for (int i = 0; i < PORTS_MAX; i++)
        MUST(in_session[i] <= SESSION_COMMANDS_MAX);
}

/* The agent may not go on for ever: each round of work has to use up something. */
static void drain(void) {
    commands_time_out();
    sessions_time_out();
    if (stopping)
        main_process_stop(requests_grace_ms());
    MUST(stopping || main_process_time_out() == -1);
    for (int round = 0; work(); round++)
        MUST(round < ROUNDS_MAX);
    check();
}

/* --- the script ------------------------------------------------------------------------------------------ */

struct script {
    const uint8_t *at, *end;
};

static uint32_t number(struct script *script, int width) {
    uint32_t value = 0;
    for (int i = 0; i < width && script->at < script->end; i++)
        value |= (uint32_t)*script->at++ << (8 * i);
    return value;
}

static const uint8_t *octets(struct script *script, size_t *length) {
    size_t left = (size_t)(script->end - script->at);
    *length = *length < left ? *length : left;
    const uint8_t *start = script->at;
    script->at += *length;
    return start;
}

/* A session that goes on over another connection keeps its port: which one that is the agent has said. */
static void happen(int port, uint32_t poll_mask) {
    if (sim_port_index(port) >= 0)
        port_event(port_at(sim_port_index(port)), poll_mask);
}

static void deliver(int port, const uint8_t *data, size_t length) {
    sim_port_deliver(port, data, length);
    happen(port, EPOLLIN);
}

static void deliver_frame(int port, uint8_t type, uint32_t stream, const uint8_t *payload, uint32_t length) {
    static uint8_t stuffed[WIRE_STUFFED_MAX(WIRE_PAYLOAD_MAX)];
    deliver(port, stuffed, wire_encode(stuffed, type, stream, payload, length));
}

static void open_port(int number, const struct kernel_sockaddr_vm *from) {
    sim_port_connect(number, from);
    ports_accept(0, session_end);
    int index = sim_port_index(number);
    if (index < 0)
        return; /* epoll_ctl failed, as it was told to, or a stranger came */
    MUST(from->svm_family != AF_VSOCK || from->svm_cid == KERNEL_VMADDR_CID_HOST);
    if (number < VIRTIO_COUNT)
        port_at(index)->number = number;
    if (port_buffers[index] == NULL)
        port_buffers[index] = malloc(WIRE_FRAME_MAX + 1);
    wire_decoder_init(&port_at(index)->decoder, port_buffers[index]);
    wire_decoder_init(&answers[number], answer_buffers[number]);
}

/* `overtakes`: they are there before the word that the host's side is, as on a virtio-serial port that it has just opened. */
static void raw(struct script *script, int port, bool overtakes) {
    size_t length = number(script, 2);
    const uint8_t *data = octets(script, &length);
    if (!overtakes) {
        deliver(port, data, length);
        return;
    }
    sim_port_deliver(port, data, length);
    sim_port_hang_up(port); /* what is read behind them */
    happen(port, EPOLLIN | EPOLLHUP);
}

static void plain_frame(struct script *script, int port) {
    uint8_t type = (uint8_t)number(script, 1);
    uint32_t stream = number(script, 1);
    size_t length = number(script, 2);
    const uint8_t *payload = octets(script, &length);
    deliver_frame(port, type, stream, payload, (uint32_t)length);
}

static void frame_of_fields(struct script *script, int port) {
    static uint8_t payload[WIRE_PAYLOAD_MAX];
    struct wire_writer writer = {.buffer = payload, .capacity = sizeof payload};
    uint8_t type = (uint8_t)number(script, 1);
    uint32_t stream = number(script, 1);
    for (uint32_t count = number(script, 1); count > 0 && script->at < script->end; count--) {
        uint8_t tag = (uint8_t)number(script, 1);
        size_t length = number(script, 1);
        const uint8_t *value = octets(script, &length);
        wire_put(&writer, tag, value, (uint32_t)length);
    }
    deliver_frame(port, type, stream, payload, writer.length);
}

static void large_frame(struct script *script, int port) {
    static uint8_t payload[WIRE_PAYLOAD_MAX];
    uint8_t type = (uint8_t)number(script, 1);
    uint32_t stream = number(script, 1), length = number(script, 2) / SCALE + 1;
    memset(payload, (int)number(script, 1), length);
    deliver_frame(port, type, stream, payload, length);
}

static struct command *some_command(struct script *script) {
    uint32_t index = number(script, 1);
    struct command *command = commands_used > 0 ? &commands[index % (uint32_t)commands_used] : NULL;
    return command != NULL && command->pid != 0 ? command : NULL;
}

static void command_says(struct script *script) {
    struct command *command = some_command(script);
    uint32_t which = number(script, 1) & 1, length = number(script, 2) / SCALE + 1;
    uint8_t value = (uint8_t)number(script, 1);
    if (command == NULL || command->output[which].fd < 0 || command->ended)
        return;
    sim_pipe_fill(command->output[which].fd, length, value);
    command_event(which ? E_STDERR : E_STDOUT, (uint32_t)(command - commands));
}

static void command_reads(struct script *script) {
    struct command *command = some_command(script);
    uint32_t length = number(script, 2);
    if (command == NULL || command->stdin_fd < 0)
        return;
    if (length == 0)
        sim_pipe_abandon(command->stdin_fd);
    else
        sim_pipe_drain(command->stdin_fd, length / SCALE + 1);
    command_event(E_STDIN, (uint32_t)(command - commands));
}

static void command_ends(struct script *script) {
    struct command *command = some_command(script);
    uint32_t status = number(script, 2);
    if (command == NULL || command->ended)
        return;
    command_event(E_START_REPORT, (uint32_t)(command - commands));
    if (status & 0x100)
        for (int which = 0; which < 2; which++)
            if (command->output[which].fd >= 0)
                sim_pipe_abandon(command->output[which].fd);
    command_reaped(command->pid, (int)(status & 0xff7f));
}

static void any_event(struct script *script) {
    struct command *command = some_command(script);
    uint32_t kind = number(script, 1);
    if (kind & 0x80)
        drain_event(kind & 0x7f);
    else if (command != NULL)
        command_event(E_START_REPORT + (int)(kind % 4), (uint32_t)(command - commands));
}

static void reports(void) {
    for (int i = 0; i < commands_used; i++)
        if (commands[i].pid != 0 && commands[i].starting)
            command_event(E_START_REPORT, (uint32_t)i);
}

/* A connection is closed by its end of file: a client comes again, over vsock from the host or from a program of the
 * guest. */
static const struct kernel_sockaddr_vm clients[] = {{.svm_family = AF_UNIX},
                                                    {.svm_family = AF_VSOCK, .svm_cid = KERNEL_VMADDR_CID_HOST},
                                                    {.svm_family = AF_VSOCK, .svm_cid = 1}};

static void connect_another(int client) {
    for (int number = VIRTIO_COUNT; number < PORT_COUNT; number++)
        if (sim_port_index(number) < 0) {
            open_port(number, &clients[client]);
            return;
        }
}

static void step(struct script *script) {
    uint32_t operation = number(script, 1);
    static const char *const files[PORT_COUNT] = {"/etc/hosts", "/etc/passwd", "/etc/group", "/etc/ssl/cert.pem"};
    int port = (int)(operation >> 4) % PORT_COUNT;
    size_t length;
    switch (operation & 15) {
    case 0:
        raw(script, port, operation & 0x80);
        break;
    case 1:
        plain_frame(script, port);
        break;
    case 2:
        frame_of_fields(script, port);
        break;
    case 3:
        large_frame(script, port);
        break;
    case 4:
        command_says(script);
        break;
    case 5:
        command_reads(script);
        break;
    case 6:
        command_ends(script);
        break;
    case 7:
        any_event(script);
        break;
    case 8:
        reports();
        break;
    case 9:
        sim_port_room(port, number(script, 2) / SCALE);
        break;
    case 10:
        sim_port_room(port, UINT32_MAX);
        happen(port, EPOLLOUT);
        break;
    case 11:
        sim_port_hang_up(port);
        happen(port, EPOLLIN | EPOLLHUP);
        break;
    case 12:
        sim_advance_ms(number(script, 3));
        break;
    case 13: {
        static const int errors[] = {EAGAIN, ENOMEM, EMFILE, EPIPE, EIO, EINTR, EBUSY, ENOSPC};
        uint32_t nth = number(script, 1);
        sim_fail(nth & 31, errors[nth >> 5]);
        break;
    }
    case 14:
        length = number(script, 1);
        sim_put_file(files[port], octets(script, &length), length);
        break;
    case 15:
        connect_another((int)(operation >> 4) % CLIENT_COUNT);
        break;
    }
}

static const char interfaces[] = "00000000000000000000000000000001 01 80 10 80       lo\n"
                                 "20010db8000000000000000000000001 02 40 00 80     eth0\n"
                                 "fe800000000000000000000000000001 02 40 20 80     eth0\n";

static void begin(void) {
    sim_begin();
    sim_port_take = take_answer;
    sim_put_file("/proc/net/if_inet6", (const uint8_t *)interfaces, sizeof interfaces - 1);
    ports_init();
    drain_init();
    commands_init(requests_unshare);
    main_process_init();
    stopping = false;
    identity_init();
    for (int i = 0; i < PORT_COUNT - 1; i++)
        open_port(i, &clients[0]);
}

static void end(void) {
    for (int i = 0; i < commands_used; i++)
        if (commands[i].pid != 0)
            command_free(&commands[i]);
    for (int i = 0; i < PORTS_MAX; i++) {
        free(port_buffers[i]);
        port_buffers[i] = NULL;
    }
    sim_end();
}

static void report(void) {
    fprintf(stderr, "frames handled: %llu\nframes answered: %llu\n", (unsigned long long)frames_handled,
            (unsigned long long)frames_answered);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    return atexit(report);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct script script = {data, data + size};
    begin();
    for (int steps = 0; script.at < script.end && steps < STEPS_MAX; steps++) {
        step(&script);
        drain();
    }
    end();
    return 0;
}
