/* Types and limits of docs/reference/protocol.md. Field tags are given where they are read and written. */
#ifndef RAMET_MESSAGE_H
#define RAMET_MESSAGE_H

#define PROTOCOL_VERSION 1
#define AGENT_VERSION "0.1.0"

enum message {
    M_HELLO = 0x01,
    M_PING = 0x02,
    M_EXEC = 0x03,
    M_STDIN = 0x04,
    M_STDIN_EOF = 0x05,
    M_SIGNAL = 0x06,
    M_CREDIT = 0x07,
    M_IDENTITY = 0x08,
    M_LIST = 0x09,
    M_SHUTDOWN = 0x0a,
    M_ACK = 0x0b,
    M_BYE = 0x0c,
    M_CLOCK = 0x0d,
    M_TRUST = 0x0e,
    M_GROW = 0x10,
    M_WELCOME = 0x81,
    M_PONG = 0x82,
    M_STARTED = 0x83,
    M_STDOUT = 0x84,
    M_STDERR = 0x85,
    M_EXIT = 0x86,
    M_STDIN_CREDIT = 0x87,
    M_IDENTITY_DONE = 0x88,
    M_LIST_DONE = 0x89,
    M_SHUTDOWN_DONE = 0x8a,
    M_ACKED = 0x8b,
    M_CLOCK_DONE = 0x8d,
    M_TRUST_DONE = 0x8e,
    M_ERROR = 0x8f,
    M_GROW_DONE = 0x90,
};

/* ERROR in answer to EXEC names the step that failed: an errno alone doesn't tell a missing program from a missing
 * directory. */
enum start_step { STEP_NONE, STEP_EXECVE, STEP_CWD, STEP_USER, STEP_SETUP };

enum exec_flag { EXEC_DETACHED = 1, EXEC_STDIN = 2, EXEC_CONSOLE = 4, EXEC_MAIN = 8, EXEC_MAKE_CWD = 16 };

#define NONCE_BYTES 16u
#define TOKEN_BYTES 16u
#define SESSION_GRACE_MS 30000u
#define PING_MAX 256u
#define SEED_MIN 32u
#define SEED_MAX 512u
#define HOSTNAME_MAX 64u
#define MACHINE_ID_DIGITS 32u
#define ERROR_TEXT_MAX 512u
#define OUTPUT_WINDOW 262144u
#define STDIN_WINDOW 65536u
#define SESSION_COMMANDS_MAX 64
#define COMMANDS_MAX 256
#define LAST_SIGNAL 64u

#endif
