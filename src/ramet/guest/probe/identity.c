#include "identity.h"

#include <string.h>

#include "machine.h"
#include "link/message.h"
#include "random.h"

#define BOOT_RANDOM_BYTES 16u

static struct person {
    uint64_t generation;
    uint64_t clock_offset_ns; /* of CLOCK_REALTIME from CLOCK_MONOTONIC */
    char hostname[HOSTNAME_MAX + 1];
    char machine_id[MACHINE_ID_DIGITS];
} self HOT;

uint64_t identity_generation(void) { return self.generation; }

const char *identity_hostname(void) { return self.hostname; }

uint64_t identity_realtime_ns(void) { return machine_monotonic_ns() + self.clock_offset_ns; }

static bool is_hostname(const struct wire_field *field) {
    for (uint32_t i = 0; i < field->length; i++) {
        uint8_t c = field->value[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!letter && !(c >= '0' && c <= '9') && c != '.' && c != '-')
            return false;
    }
    return field->length > 0 && field->length <= HOSTNAME_MAX;
}

static bool is_machine_id(const struct wire_field *field) {
    for (uint32_t i = 0; i < field->length; i++) {
        uint8_t c = field->value[i];
        if (!(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'f'))
            return false;
    }
    return field->length == MACHINE_ID_DIGITS;
}

struct request {
    struct person person;
    uint64_t realtime_ns;
    const uint8_t *seed;
    uint32_t seed_bytes;
};

static bool parse(const struct wire_frame *frame, struct request *request) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    unsigned seen = 0;
    int more;
    while ((more = wire_next(&reader, &field)) > 0) {
        bool good = true;
        switch (field.tag) {
        case 1:
            good = wire_number(&field, 8, &request->person.generation);
            break;
        case 2:
            good = field.length >= SEED_MIN && field.length <= SEED_MAX;
            request->seed = field.value;
            request->seed_bytes = field.length;
            break;
        case 3:
            good = wire_number(&field, 8, &request->realtime_ns);
            break;
        case 4:
            if ((good = is_hostname(&field))) {
                memcpy(request->person.hostname, field.value, field.length);
                request->person.hostname[field.length] = '\0';
            }
            break;
        case 5:
            if ((good = is_machine_id(&field)))
                memcpy(request->person.machine_id, field.value, field.length);
            break;
        }
        if (!good)
            return false;
        if (field.tag < 8)
            seen |= 1u << field.tag;
    }
    return more == 0 && (seen & 0x3e) == 0x3e;
}

bool identity_apply(const struct wire_frame *frame, struct wire_writer *answer) {
    struct request request;
    uint8_t boot_random[BOOT_RANDOM_BYTES];
    if (!parse(frame, &request))
        return false;
    random_mix(request.seed, request.seed_bytes);
    self = request.person;
    self.clock_offset_ns = request.realtime_ns - machine_monotonic_ns();
    random_draw(boot_random, sizeof boot_random);
    wire_put_number(answer, 1, 8, self.generation);
    wire_put(answer, 2, boot_random, sizeof boot_random);
    wire_put(answer, 3, self.hostname, (uint32_t)strlen(self.hostname));
    wire_put(answer, 4, self.machine_id, sizeof self.machine_id);
    wire_put_number(answer, 5, 8, identity_realtime_ns());
    return true;
}

bool identity_set_clock(const struct wire_frame *frame, struct wire_writer *answer) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    uint64_t realtime_ns = 0;
    int more;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1 && !wire_number(&field, 8, &realtime_ns))
            return false;
    if (more < 0 || realtime_ns == 0 || realtime_ns > INT64_MAX)
        return false;
    self.clock_offset_ns = realtime_ns - machine_monotonic_ns();
    wire_put_number(answer, 1, 8, identity_realtime_ns());
    return true;
}
