#include "link/wire.h"

#include <string.h>

enum { FLAG = 0x7e, ESCAPE = 0x7d, TOGGLE = 0x20 };

static uint64_t load(const uint8_t *at, uint32_t width) {
    uint64_t number = 0;
    for (uint32_t i = 0; i < width; i++)
        number |= (uint64_t)at[i] << (8 * i);
    return number;
}

static void store(uint8_t *at, uint32_t width, uint64_t number) {
    for (uint32_t i = 0; i < width; i++)
        at[i] = (uint8_t)(number >> (8 * i));
}

void wire_decoder_init(struct wire_decoder *decoder, uint8_t *buffer) {
    decoder->buffer = buffer;
    decoder->length = 0;
    decoder->escaped = false;
    decoder->damaged = false;
}

/* At a flag: is what was collected a frame? Either way the next one begins. */
static bool finish(struct wire_decoder *decoder, struct wire_frame *frame) {
    uint32_t length = decoder->length;
    bool whole = !decoder->damaged && !decoder->escaped && length >= WIRE_HEADER &&
                 load(decoder->buffer + 8, 4) == length - WIRE_HEADER;
    wire_decoder_init(decoder, decoder->buffer);
    if (!whole)
        return false;
    frame->type = decoder->buffer[0];
    frame->stream = (uint32_t)load(decoder->buffer + 4, 4);
    frame->payload = decoder->buffer + WIRE_HEADER;
    frame->length = length - WIRE_HEADER;
    return true;
}

size_t wire_decode(struct wire_decoder *decoder, const uint8_t *data, size_t count, struct wire_frame *frame,
                   bool *complete) {
    *complete = false;
    for (size_t i = 0; i < count; i++) {
        uint8_t octet = data[i];
        if (octet == FLAG) {
            if (finish(decoder, frame)) {
                *complete = true;
                return i + 1;
            }
            continue;
        }
        if (decoder->damaged)
            continue;
        if (decoder->escaped) {
            decoder->escaped = false;
            octet ^= TOGGLE;
            if (octet != FLAG && octet != ESCAPE) {
                decoder->damaged = true;
                continue;
            }
        } else if (octet == ESCAPE) {
            decoder->escaped = true;
            continue;
        }
        if (decoder->length == WIRE_FRAME_MAX)
            decoder->damaged = true;
        else
            decoder->buffer[decoder->length++] = octet;
    }
    return count;
}

static uint8_t *stuff(uint8_t *out, const uint8_t *data, uint32_t count) {
    uint32_t done = 0;
    while (done < count) {
        uint32_t plain = done;
        while (plain < count && data[plain] != FLAG && data[plain] != ESCAPE)
            plain++;
        memcpy(out, data + done, plain - done);
        out += plain - done;
        if (plain < count) {
            *out++ = ESCAPE;
            *out++ = data[plain++] ^ TOGGLE;
        }
        done = plain;
    }
    return out;
}

size_t wire_encode(uint8_t *out, uint8_t type, uint32_t stream, const uint8_t *payload, uint32_t length) {
    uint8_t header[WIRE_HEADER] = {type};
    store(header + 4, 4, stream);
    store(header + 8, 4, length);
    uint8_t *at = out;
    *at++ = FLAG; /* bytes that were cut off before are no part of this frame */
    at = stuff(at, header, WIRE_HEADER);
    if (length > 0)
        at = stuff(at, payload, length);
    *at++ = FLAG;
    return (size_t)(at - out);
}

int wire_next(struct wire_reader *reader, struct wire_field *field) {
    size_t left = (size_t)(reader->end - reader->at);
    if (left == 0)
        return 0;
    if (left < WIRE_FIELD_HEADER)
        return -1;
    uint64_t length = load(reader->at + 1, 4);
    if (length > left - WIRE_FIELD_HEADER)
        return -1;
    field->tag = reader->at[0];
    field->length = (uint32_t)length;
    field->value = reader->at + WIRE_FIELD_HEADER;
    reader->at = field->value + length;
    return 1;
}

bool wire_number(const struct wire_field *field, uint32_t width, uint64_t *number) {
    if (field->length != width)
        return false;
    *number = load(field->value, width);
    return true;
}

void wire_put(struct wire_writer *writer, uint8_t tag, const void *value, uint32_t length) {
    uint32_t left = writer->capacity - writer->length;
    if (left < WIRE_FIELD_HEADER || length > left - WIRE_FIELD_HEADER) {
        writer->full = true;
        return;
    }
    uint8_t *at = writer->buffer + writer->length;
    at[0] = tag;
    store(at + 1, 4, length);
    if (length > 0)
        memcpy(at + WIRE_FIELD_HEADER, value, length);
    writer->length += WIRE_FIELD_HEADER + length;
}

void wire_put_number(struct wire_writer *writer, uint8_t tag, uint32_t width, uint64_t number) {
    uint8_t octets[8];
    store(octets, width, number);
    wire_put(writer, tag, octets, width);
}
