#include "random.h"

#include <string.h>

#include "machine.h"

/* A sponge over SipHash's permutation (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012, section 2.3, with
 * its four constants): cheap, and every bit of the seed reaches every bit of the state. */
static uint64_t state[4] HOT;

static uint64_t turn(uint64_t word, int bits) { return word << bits | word >> (64 - bits); }

static void permute(int rounds) {
    uint64_t a = state[0], b = state[1], c = state[2], d = state[3];
    while (rounds-- > 0) {
        a += b;
        b = turn(b, 13) ^ a;
        a = turn(a, 32);
        c += d;
        d = turn(d, 16) ^ c;
        a += d;
        d = turn(d, 21) ^ a;
        c += b;
        b = turn(b, 17) ^ c;
        c = turn(c, 32);
    }
    state[0] = a;
    state[1] = b;
    state[2] = c;
    state[3] = d;
}

static void absorb(uint64_t word) {
    state[3] ^= word;
    permute(2);
    state[0] ^= word;
}

void random_mix(const uint8_t *seed, uint32_t bytes) {
    if (state[0] == 0) { /* the first time; a state of zeros would stay one */
        state[0] ^= 0x736f6d6570736575;
        state[1] ^= 0x646f72616e646f6d;
        state[2] ^= 0x6c7967656e657261;
        state[3] ^= 0x7465646279746573;
    }
    absorb(machine_cycles());
    absorb(bytes);
    for (uint32_t at = 0; at < bytes; at += 8) {
        uint64_t word = 0;
        memcpy(&word, seed + at, bytes - at < 8 ? bytes - at : 8);
        absorb(word);
    }
    permute(4);
}

void random_draw(uint8_t *out, uint32_t bytes) {
    absorb(machine_cycles());
    for (uint32_t at = 0; at < bytes; at += 8) {
        state[2] ^= 0xff;
        permute(4);
        uint64_t word = state[0] ^ state[1] ^ state[2] ^ state[3];
        memcpy(out + at, &word, bytes - at < 8 ? bytes - at : 8);
    }
}
