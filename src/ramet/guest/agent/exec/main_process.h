/* The guest's main process: the command with whose end the guest ends. */
#ifndef RAMET_MAIN_PROCESS_H
#define RAMET_MAIN_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

#define MAIN_GRACE_MS 2000u /* where a shutdown gives none */

void main_process_init(void);

/* True while a command is the main process, and until its client has been told of its end. */
bool main_process_is_there(void);

/* Its client has been told, or there is nobody to tell. */
void main_process_is_over(int wait_status);

/* What to say of its end, as a line without its end; NULL while it hasn't ended, and if there was none. */
const char *main_process_last_words(void);

/* True once it is over: then the guest ends. */
bool main_process_has_ended(void);

/* Asks it to end and kills it when it hasn't done so in time; to be called again until it is true: there is no main process
 * left, or none that can be waited for. A later call may shorten the time. */
bool main_process_stop(uint32_t grace_ms);

/* Milliseconds until main_process_stop has to be called again, -1 when it needn't. */
int main_process_time_out(void);

#endif
