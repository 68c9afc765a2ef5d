/* The end of it all. */
#ifndef RAMET_POWER_H
#define RAMET_POWER_H

enum shutdown_wish { STAY, POWER_OFF, REBOOT, HALT };

/* Ends every process, says `last_words` (NULL: none) in a separate line on the console, unmounts the disks and the root,
 * syncs and leaves. Returns only when the kernel refuses.
 *
 * `ramet.power_off=reset` among the kernel's arguments says that this machine has no power switch, and that its VMM
 * ends when the guest resets. A power-off is a reset there, and so that the two can be told apart the agent writes
 * `ramet: power off` to the console first, as a separate line. */
void init_shutdown(enum shutdown_wish wish, const char *last_words);

/* The same in a guest with another init: asks that init. */
void init_ask_for_shutdown(enum shutdown_wish wish);

#endif
