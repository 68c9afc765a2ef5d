#include "command.h"

#include <string.h>

#include "balloon.h"
#include "block.h"
#include "identity.h"
#include "machine.h"
#include "link/message.h"

#define ARGUMENTS_MAX 4u /* of which the last would be one too many */
#define LINE_BYTES 17u   /* 16 digits and an end of line */
#define PAGES_A_TURN 256u /* no more than BALLOON_PAGES_MAX */
#define WORDS_A_PAGE (PAGE_BYTES / 8)
#define OUTPUT_ROOM 1024u
#define SIGNAL_KILL 9u
#define SIGNAL_LAST 64u

enum { F_ARGV = 1, F_ENV, F_CWD, F_USER, F_TIMEOUT, F_FLAGS };
enum { SUCCESS = 0, FAILED = 1, USAGE = 2 };

struct text {
    const char *at;
    uint32_t length;
};

struct command {
    const struct program *program; /* NULL: a free slot */
    uint32_t pid, stream;
    int connection; /* -1: nobody hears of it */
    bool detached, working;
    uint8_t exit_code;
    uint64_t credit, stdin_allowed, deadline_ns;
    uint64_t address, left, value; /* of what it works on */
    const char *complaint;         /* for stderr */
};

/* `start` does a short command's work. A long one it leaves `working`: then `work` does a piece each turn, and returns
 * how many octets of output it wrote to `lines`, at most `room`. */
struct program {
    const char *name;
    const char *usage; /* NULL: it takes anything */
    unsigned arguments_min, arguments_max;
    void (*start)(struct command *command, const uint64_t *arguments, unsigned count);
    uint32_t (*work)(struct command *command, uint8_t *lines, uint32_t room);
};

static struct command commands[COMMANDS_MAX];
static int commands_used HOT;
static uint32_t last_pid HOT;

static uint32_t put_line(uint8_t *at, uint64_t word) {
    for (int i = 0; i < 16; i++)
        at[i] = (uint8_t) "0123456789abcdef"[word >> (60 - 4 * i) & 15];
    at[16] = '\n';
    return LINE_BYTES;
}

static void fail(struct command *command, uint8_t exit_code, const char *complaint) {
    command->exit_code = exit_code;
    command->complaint = complaint;
    command->working = false;
}

static void claim(struct command *command, uint64_t address, uint64_t count, uint64_t size, bool write) {
    command->address = address;
    command->left = count;
    command->working = true;
    if (address % 8 != 0)
        fail(command, USAGE, "the address is not a multiple of 8\n");
    else if (count > MAPPED_END / size || !machine_is_ram(address, count * size, false))
        fail(command, FAILED, "not RAM\n");
    else if (write && !machine_is_ram(address, count * size, true))
        fail(command, FAILED, "the probe itself is there\n");
}

/* --- the programs ---------------------------------------------------------------------------------------- */

static void start_peek(struct command *command, const uint64_t *arguments, unsigned count) {
    claim(command, arguments[0], count > 1 ? arguments[1] : 1, 8, false);
}

static uint32_t work_peek(struct command *command, uint8_t *lines, uint32_t room) {
    const volatile uint64_t *at = (const volatile uint64_t *)(uintptr_t)command->address;
    uint32_t length = 0;
    for (; command->left > 0 && room - length >= LINE_BYTES; command->left--)
        length += put_line(lines + length, *at++);
    command->address = (uintptr_t)at;
    command->working = command->left > 0;
    return length;
}

static void start_poke(struct command *command, const uint64_t *arguments, unsigned count) {
    (void)count;
    claim(command, arguments[0], 1, 8, true);
    if (command->working)
        *(volatile uint64_t *)(uintptr_t)command->address = arguments[1];
    command->working = false;
}

static void start_fill(struct command *command, const uint64_t *arguments, unsigned count) {
    (void)count;
    claim(command, arguments[0], arguments[1], PAGE_BYTES, true);
    command->value = arguments[2];
}

static uint64_t pages_of_turn(struct command *command) {
    uint64_t pages = command->left < PAGES_A_TURN ? command->left : PAGES_A_TURN;
    command->left -= pages;
    return pages;
}

static uint32_t work_fill(struct command *command, uint8_t *lines, uint32_t room) {
    (void)lines, (void)room;
    uint64_t words = pages_of_turn(command) * WORDS_A_PAGE;
    __asm__ volatile("rep stosq" : "+D"(command->address), "+c"(words) : "a"(command->value) : "memory");
    command->working = command->left > 0;
    return 0;
}

static void start_sum(struct command *command, const uint64_t *arguments, unsigned count) {
    (void)count;
    claim(command, arguments[0], arguments[1], PAGE_BYTES, false);
}

static uint32_t work_sum(struct command *command, uint8_t *lines, uint32_t room) {
    if (command->left > 0) {
        const uint64_t *at = (const uint64_t *)(uintptr_t)command->address;
        const uint64_t *end = at + pages_of_turn(command) * WORDS_A_PAGE;
        while (at < end)
            command->value += *at++;
        command->address = (uintptr_t)at;
    }
    command->working = command->left > 0 || room < LINE_BYTES;
    return command->working ? 0 : put_line(lines, command->value);
}

static void move_sector(struct command *command, uint64_t sector, bool write, uint64_t value) {
    uint64_t words[SECTOR_BYTES / 8];
    for (unsigned i = 0; i < SECTOR_BYTES / 8; i++)
        words[i] = value;
    if (sector >= block_sectors())
        fail(command, FAILED, block_sectors() == 0 ? "no disk\n" : "beyond the end of the disk\n");
    else if (!block_move(sector, write, words))
        fail(command, FAILED, "I/O error\n");
    command->value = words[0];
}

static void start_bpeek(struct command *command, const uint64_t *arguments, unsigned count) {
    (void)count;
    command->working = true;
    move_sector(command, arguments[0], false, 0);
}

static void start_bpoke(struct command *command, const uint64_t *arguments, unsigned count) {
    (void)count;
    move_sector(command, arguments[0], true, arguments[1]);
}

static void start_give(struct command *command, const uint64_t *arguments, unsigned count) {
    (void)count;
    claim(command, arguments[0], arguments[1], PAGE_BYTES, true);
    if (command->working && arguments[0] % PAGE_BYTES != 0)
        fail(command, USAGE, "the address is not a page's\n");
    else if (command->working && !balloon_exists())
        fail(command, FAILED, "no balloon\n");
}

static uint32_t work_give(struct command *command, uint8_t *lines, uint32_t room) {
    (void)lines, (void)room;
    uint64_t pages = pages_of_turn(command);
    if (pages > 0)
        balloon_give(command->address, (uint32_t)pages);
    command->address += pages * PAGE_BYTES;
    command->working = command->left > 0;
    return 0;
}

static void start_hostname(struct command *command, const uint64_t *arguments, unsigned count) {
    (void)arguments, (void)count;
    command->working = true;
}

static uint32_t work_hostname(struct command *command, uint8_t *lines, uint32_t room) {
    const char *name = identity_hostname();
    uint32_t length = (uint32_t)strlen(name);
    if (room < length + 1)
        return 0;
    memcpy(lines, name, length);
    lines[length] = '\n';
    command->working = false;
    return length + 1;
}

static void start_true(struct command *command, const uint64_t *arguments, unsigned count) {
    (void)command, (void)arguments, (void)count;
}

static const struct program programs[] = {
    {"peek", "usage: peek ADDR [COUNT]\n", 1, 2, start_peek, work_peek},
    {"poke", "usage: poke ADDR VALUE\n", 2, 2, start_poke, NULL},
    {"fill", "usage: fill ADDR PAGES VALUE\n", 3, 3, start_fill, work_fill},
    {"give", "usage: give ADDR PAGES\n", 2, 2, start_give, work_give},
    {"sum", "usage: sum ADDR PAGES\n", 2, 2, start_sum, work_sum},
    {"bpeek", "usage: bpeek SECTOR\n", 1, 1, start_bpeek, work_sum},
    {"bpoke", "usage: bpoke SECTOR VALUE\n", 2, 2, start_bpoke, NULL},
    {"hostname", "usage: hostname\n", 0, 0, start_hostname, work_hostname},
    {"true", NULL, 0, 0, start_true, NULL},
};

/* --- starting one ---------------------------------------------------------------------------------------- */

struct exec {
    struct text arguments[ARGUMENTS_MAX];
    unsigned count;
    uint64_t timeout_ms, flags;
};

static bool has_octet(const struct wire_field *field, uint8_t octet) {
    for (uint32_t i = 0; i < field->length; i++)
        if (field->value[i] == octet)
            return true;
    return false;
}

/* NULL, or what is wrong: what the agent's exec/start.c finds wrong, in its words. */
static const char *parse(const struct wire_frame *frame, struct exec *exec) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    int more;
    *exec = (struct exec){0};
    while ((more = wire_next(&reader, &field)) > 0) {
        if (field.tag >= F_ARGV && field.tag <= F_USER && has_octet(&field, 0))
            return "a NUL in argv, env, cwd or user";
        switch (field.tag) {
        case F_ARGV:
            if (exec->count < ARGUMENTS_MAX + 1)
                exec->count++;
            if (exec->count <= ARGUMENTS_MAX)
                exec->arguments[exec->count - 1] = (struct text){(const char *)field.value, field.length};
            break;
        case F_ENV:
            if (field.length == 0 || field.value[0] == '=' || !has_octet(&field, '='))
                return "env is not K=V";
            break;
        case F_TIMEOUT:
            if (!wire_number(&field, 8, &exec->timeout_ms))
                return "timeout is not a u64";
            break;
        case F_FLAGS:
            if (!wire_number(&field, 4, &exec->flags))
                return "flags are not a u32";
            break;
        }
    }
    if (more < 0)
        return "malformed fields";
    return exec->count > 0 ? NULL : "argv is empty";
}

static const struct program *find_program(struct text name) {
    for (unsigned i = 0; i < sizeof programs / sizeof programs[0]; i++)
        if (strlen(programs[i].name) == name.length && memcmp(programs[i].name, name.at, name.length) == 0)
            return &programs[i];
    return NULL;
}

static bool parse_hex(struct text text, uint64_t *number) {
    *number = 0;
    uint32_t i = text.length > 2 && text.at[0] == '0' && text.at[1] == 'x' ? 2 : 0;
    if (text.length == i)
        return false;
    for (; i < text.length; i++) {
        char c = text.at[i];
        uint8_t lower = (uint8_t)(c | 0x20); /* leaves digits as they are */
        uint64_t digit = c >= '0' && c <= '9' ? (uint64_t)(c - '0') : (uint64_t)(lower - 'a') + 10;
        bool good = (c >= '0' && c <= '9') || (lower >= 'a' && lower <= 'f');
        if (!good || *number >> 60 != 0)
            return false;
        *number = *number << 4 | digit;
    }
    return true;
}

static void start(struct command *command, const struct exec *exec) {
    const struct program *program = command->program;
    uint64_t numbers[ARGUMENTS_MAX] = {0};
    unsigned count = exec->count - 1;
    bool good = program->usage == NULL || (count >= program->arguments_min && count <= program->arguments_max);
    for (unsigned i = 0; good && program->usage != NULL && i < count; i++)
        good = parse_hex(exec->arguments[i + 1], &numbers[i]);
    if (good)
        program->start(command, numbers, count);
    else
        fail(command, USAGE, program->usage);
}

static struct command *on_stream(const struct connection *connection, uint32_t stream) {
    int index = (int)connection_index(connection);
    for (int i = 0; i < commands_used; i++)
        if (commands[i].program != NULL && commands[i].connection == index && commands[i].stream == stream)
            return &commands[i];
    return NULL;
}

static struct command *claim_slot(const struct connection *connection) {
    int in_session = 0;
    struct command *free = NULL;
    for (int i = 0; i < COMMANDS_MAX; i++) {
        if (i < commands_used && commands[i].program != NULL)
            in_session += commands[i].connection == (int)connection_index(connection);
        else if (free == NULL)
            free = &commands[i];
    }
    return in_session < SESSION_COMMANDS_MAX ? free : NULL;
}

static void forget(struct command *command) {
    command->program = NULL;
    while (commands_used > 0 && commands[commands_used - 1].program == NULL)
        commands_used--;
}

static void end_stream(struct connection *connection, struct command *command, uint32_t error, const char *text) {
    uint32_t stream = command->stream;
    forget(command);
    connection_send_error(connection, stream, error, text);
}

static void refuse_program(struct connection *connection, uint32_t stream, struct text name) {
    static const char reason[] = ": No such file or directory";
    char text[200 + sizeof reason];
    uint32_t length = name.length < 200 ? name.length : 200;
    memcpy(text, name.at, length);
    memcpy(text + length, reason, sizeof reason);
    connection_send_error(connection, stream, E_NO_ENTRY, text);
}

void command_exec(struct connection *connection, const struct wire_frame *frame) {
    struct exec exec;
    struct command *command = on_stream(connection, frame->stream);
    if (command != NULL) {
        end_stream(connection, command, E_BUSY, "EXEC on a stream that is in use");
        return;
    }
    const char *wrong = frame->stream == 0 ? "EXEC on stream 0" : parse(frame, &exec);
    if (wrong != NULL) {
        connection_send_error(connection, frame->stream, E_INVALID, wrong);
        return;
    }
    if ((command = claim_slot(connection)) == NULL) {
        connection_send_error(connection, frame->stream, E_AGAIN, "too many commands at once");
        return;
    }
    const struct program *program = find_program(exec.arguments[0]);
    if (program == NULL) {
        refuse_program(connection, frame->stream, exec.arguments[0]);
        return;
    }
    int index = (int)(command - commands);
    commands_used = index < commands_used ? commands_used : index + 1;
    last_pid = last_pid < INT32_MAX ? last_pid + 1 : 1;
    bool detached = exec.flags & EXEC_DETACHED;
    *command = (struct command){
        .program = program,
        .pid = last_pid,
        .stream = frame->stream,
        .connection = detached ? -1 : (int)connection_index(connection),
        .detached = detached,
        .credit = OUTPUT_WINDOW,
        .stdin_allowed = !detached && (exec.flags & EXEC_STDIN) ? STDIN_WINDOW : 0,
    };
    if (exec.timeout_ms > 0 && exec.timeout_ms < UINT64_MAX / 2000000u)
        command->deadline_ns = machine_monotonic_ns() + exec.timeout_ms * 1000000u;
    connection_send_number(connection, M_STARTED, frame->stream, command->pid);
    start(command, &exec);
}

/* --- what its client asks of it -------------------------------------------------------------------------- */

void command_stdin(struct connection *connection, const struct wire_frame *frame) {
    struct command *command = on_stream(connection, frame->stream);
    if (command == NULL)
        return;
    if (frame->length > command->stdin_allowed)
        end_stream(connection, command, E_PROTOCOL, "more stdin than was granted");
    else if (frame->length > 0) /* none of the commands reads it */
        connection_send_number(connection, M_STDIN_CREDIT, frame->stream, frame->length);
}

static bool only_number(const struct wire_frame *frame, uint64_t *number) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    bool found = false;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1)
            found = wire_number(&field, 4, number);
    return found && more == 0;
}

static void send_killed(struct connection *connection, uint32_t stream, uint32_t signal, bool timed_out) {
    uint8_t payload[2 * WIRE_FIELD_HEADER + 5];
    struct wire_writer writer = {.buffer = payload, .capacity = sizeof payload};
    wire_put_number(&writer, 2, 4, signal);
    if (timed_out)
        wire_put_number(&writer, 3, 1, 1);
    connection_send_fields(connection, M_EXIT, stream, &writer);
}

/* Of Linux's signals those that a program may be sent without dying of it: CHLD, CONT, URG, WINCH. */
static bool is_ignored(uint64_t signal) { return signal == 17 || signal == 18 || signal == 23 || signal == 28; }

void command_signal(struct connection *connection, const struct wire_frame *frame) {
    struct command *command = on_stream(connection, frame->stream);
    uint64_t number;
    if (command == NULL)
        return;
    if (!only_number(frame, &number) || number < 1 || number > SIGNAL_LAST) {
        end_stream(connection, command, E_INVALID, "not a signal");
    } else if (!is_ignored(number)) {
        forget(command);
        send_killed(connection, frame->stream, (uint32_t)number, false);
    }
}

void command_credit(struct connection *connection, const struct wire_frame *frame) {
    struct command *command = on_stream(connection, frame->stream);
    uint64_t bytes;
    if (command == NULL)
        return;
    if (!only_number(frame, &bytes))
        end_stream(connection, command, E_INVALID, "not a credit");
    else if (command->credit < UINT64_MAX / 2)
        command->credit += bytes;
}

void commands_orphan(const struct connection *connection) {
    for (int i = 0; i < commands_used; i++)
        if (commands[i].connection == (int)connection_index(connection))
            commands[i].connection = -1;
}

void commands_orphan_all_but(const struct connection *connection) {
    for (int i = 0; i < commands_used; i++)
        if (commands[i].connection != (int)connection_index(connection))
            commands[i].connection = -1;
}

void commands_list(struct wire_writer *writer) {
    for (int i = 0; i < commands_used; i++) {
        const struct command *command = &commands[i];
        if (command->program == NULL)
            continue;
        uint8_t fields[64];
        struct wire_writer process = {.buffer = fields, .capacity = sizeof fields};
        wire_put_number(&process, 1, 4, command->pid);
        wire_put(&process, 2, command->program->name, (uint32_t)strlen(command->program->name));
        wire_put_number(&process, 3, 1, command->connection < 0 && !command->detached);
        wire_put_number(&process, 4, 1, command->detached);
        wire_put(writer, 1, fields, process.length); /* one that doesn't fit is left out */
    }
}

/* --- running --------------------------------------------------------------------------------------------- */

/* Nobody takes its output: it is made all the same, as a program does whose output goes to /dev/null. */
static void work_alone(struct command *command) {
    uint8_t lines[OUTPUT_ROOM];
    if (command->working)
        command->program->work(command, lines, sizeof lines);
    if (!command->working)
        forget(command);
}

static bool work_for(struct command *command, struct connection *connection, bool timed_out) {
    uint8_t lines[OUTPUT_ROOM];
    if (!connection_has_data_room(connection))
        return false;
    if (timed_out) {
        uint32_t stream = command->stream;
        forget(command);
        send_killed(connection, stream, SIGNAL_KILL, true);
        return true;
    }
    if (command->working) {
        uint64_t left = command->left;
        uint32_t room = command->credit < sizeof lines ? (uint32_t)command->credit : sizeof lines;
        uint32_t length = command->program->work(command, lines, room);
        command->credit -= length;
        if (length > 0)
            connection_send(connection, M_STDOUT, command->stream, lines, length);
        return length > 0 || command->left != left || !command->working;
    }
    if (command->complaint != NULL)
        connection_send(connection, M_STDERR, command->stream, command->complaint,
                        (uint32_t)strlen(command->complaint)); /* the first of its output: there is credit */
    connection_send_number(connection, M_EXIT, command->stream, command->exit_code);
    forget(command);
    return true;
}

bool commands_work(void) {
    bool any = false;
    for (int i = 0; i < commands_used; i++) {
        struct command *command = &commands[i];
        if (command->program == NULL)
            continue;
        bool timed_out = command->deadline_ns != 0 && machine_monotonic_ns() >= command->deadline_ns;
        if (command->connection >= 0) {
            any = work_for(command, connection_at((unsigned)command->connection), timed_out) || any;
        } else if (timed_out) {
            forget(command);
        } else {
            work_alone(command);
            any = true;
        }
    }
    return any;
}
