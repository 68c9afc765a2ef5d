/* Moving data between commands and ports: starts, pipes, windows, ends. */
#ifndef RAMET_PUMP_H
#define RAMET_PUMP_H

#include <stdbool.h>

/* Moves what can be moved. True when it got anything done. */
bool commands_pump(void);

#endif
