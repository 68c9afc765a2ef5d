/* Programs that PID 1 starts for the guest itself. */
#ifndef RAMET_PROGRAM_H
#define RAMET_PROGRAM_H

/* Starts it, in a new session and with the default signals, and doesn't wait. What can't be executed is reported
 * on the console. `argv` ends with NULL. */
void program_run(const char *const argv[]);

#endif
