/* The probe's own generator. For telling guests apart, not for keys. */
#ifndef PROBE_RANDOM_H
#define PROBE_RANDOM_H

#include <stdint.h>

/* Mixes in what the host sent, and the time. */
void random_mix(const uint8_t *seed, uint32_t bytes);
/* Never the same twice: what is drawn changes the state. */
void random_draw(uint8_t *out, uint32_t bytes);

#endif
