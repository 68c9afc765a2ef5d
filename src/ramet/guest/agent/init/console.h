/* The console: what the agent says there. */
#ifndef RAMET_CONSOLE_H
#define RAMET_CONSOLE_H

/* Makes the console standard input, output and error; /dev/null where there is none. */
void console_open(void);

/* A line on standard error, which is the console of PID 1. */
void init_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
