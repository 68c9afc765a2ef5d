/* Frames and fields of the agent's protocol (docs/reference/protocol.md).
 *
 * Freestanding: no allocation, no I/O, nothing of libc but memcpy. Every buffer is the caller's, so that a
 * bare-metal guest or a fuzzer can use the same code. Nothing here trusts its input.
 */
#ifndef RAMET_WIRE_H
#define RAMET_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_HEADER 12u
#define WIRE_PAYLOAD_MAX 65536u
#define WIRE_FRAME_MAX (WIRE_HEADER + WIRE_PAYLOAD_MAX)
/* Room that a frame takes at worst: every octet escaped, a flag before and after. */
#define WIRE_STUFFED_MAX(payload) (2u * (WIRE_HEADER + (payload)) + 2u)
#define WIRE_FIELD_HEADER 5u

struct wire_frame {
    uint8_t type;
    uint32_t stream;
    uint8_t *payload; /* within the decoder's buffer, good until its next call */
    uint32_t length;
};

/* `buffer` holds WIRE_FRAME_MAX + 1 octets; the last is never written here: a caller may end a text with it. */
struct wire_decoder {
    uint8_t *buffer;
    uint32_t length;
    bool escaped;
    bool damaged; /* too long or wrongly escaped: nothing is kept until the next flag */
};

void wire_decoder_init(struct wire_decoder *decoder, uint8_t *buffer);

/* Takes octets up to the end of the next whole frame, or all of them. Returns how many were taken;
 * `*complete` says whether `*frame` was filled. What isn't a frame is dropped. */
size_t wire_decode(struct wire_decoder *decoder, const uint8_t *data, size_t count, struct wire_frame *frame,
                   bool *complete);

/* Writes one frame, flags included, to `out`, which has WIRE_STUFFED_MAX(length) octets. Returns its size. */
size_t wire_encode(uint8_t *out, uint8_t type, uint32_t stream, const uint8_t *payload, uint32_t length);

struct wire_field {
    uint8_t tag;
    uint32_t length;
    const uint8_t *value;
};

struct wire_reader {
    const uint8_t *at;
    const uint8_t *end;
};

/* 1: `*field` is the next one. 0: no more. -1: it runs past the payload, which is malformed as a whole. */
int wire_next(struct wire_reader *reader, struct wire_field *field);

/* The number in a field of exactly `width` octets (1, 2, 4 or 8); false when it has another length. */
bool wire_number(const struct wire_field *field, uint32_t width, uint64_t *number);

/* A writer whose buffer is full drops the field and says so in `full`. */
struct wire_writer {
    uint8_t *buffer;
    uint32_t length;
    uint32_t capacity;
    bool full;
};

void wire_put(struct wire_writer *writer, uint8_t tag, const void *value, uint32_t length);
void wire_put_number(struct wire_writer *writer, uint8_t tag, uint32_t width, uint64_t number);

#endif
