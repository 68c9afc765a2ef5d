#include "identity/trust.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init/files.h"
#include "init/root.h"

#define BUNDLE_DIRECTORY "/etc/ssl/certs"
#define BUNDLE BUNDLE_DIRECTORY "/ca-certificates.crt"
#define DEBIAN_OPENSSL "/usr/lib/ssl"
#define BUNDLE_MAX (16u << 20)
#define PIECE 4096u
#define BEGIN "-----BEGIN CERTIFICATE-----\n"
#define END "-----END CERTIFICATE-----\n"
#define CERTIFICATE_MAX 16384u

/* The files that OpenSSL, GnuTLS, Go and others of the usual distributions read. Several may be one, by links. */
static const char *const bundles[] = {
    BUNDLE, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem", "/var/lib/ca-certificates/ca-bundle.pem", "/etc/ssl/cert.pem",
    DEBIAN_OPENSSL "/cert.pem"};
#define BUNDLES (sizeof bundles / sizeof *bundles)

/* From these the distributions' programs make the bundles anew. */
static const struct {
    const char *path;
    bool is_made;
} sources[] = {{"/usr/local/share/ca-certificates", true}, {"/etc/pki/ca-trust/source/anchors", false}};

static int fail(char *text, size_t size, const char *path) {
    int error = errno;
    snprintf(text, size, "%s: %s%s", path, strerror(error), root_advice(error));
    return error;
}

static bool is_certificate(const struct wire_field *field) {
    const size_t begin = sizeof BEGIN - 1, end = sizeof END - 1;
    return field->length > begin + end && field->length <= CERTIFICATE_MAX &&
           memchr(field->value, '\0', field->length) == NULL && memcmp(field->value, BEGIN, begin) == 0 &&
           memcmp(field->value + field->length - end, END, end) == 0;
}

/* The next certificate of a request that was checked. */
static bool next_certificate(struct wire_reader *reader, struct wire_field *field) {
    while (wire_next(reader, field) > 0)
        if (field->tag == 1)
            return true;
    return false;
}

static int check(const struct wire_frame *frame, char *text, size_t size) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    int more, count = 0;
    while ((more = wire_next(&reader, &field)) > 0)
        if (field.tag == 1 && (count++, !is_certificate(&field)))
            break;
    if (more == 0 && count > 0)
        return 0;
    snprintf(text, size, "not a certificate to trust");
    return EINVAL;
}

/* Its name comes from what it says, so that one that comes again has the same: FNV-1a, which is enough to tell a few
 * certificates of one host from each other. */
static int put_source(const char *directory, const struct wire_field *certificate, char *text, size_t size) {
    char path[128];
    uint64_t name = 0xcbf29ce484222325u;
    for (uint32_t i = 0; i < certificate->length; i++)
        name = (name ^ certificate->value[i]) * 0x100000001b3u;
    snprintf(path, sizeof path, "%s/ramet-%016llx.crt", directory, (unsigned long long)name);
    return files_put(path, (const char *)certificate->value, certificate->length, 0644) ? 0 : fail(text, size, path);
}

/* Whether an open file has this text, at any place; the file is read in pieces that overlap. */
static bool has(int fd, const struct wire_field *certificate) {
    static char piece[PIECE + CERTIFICATE_MAX];
    size_t kept = 0;
    for (off_t at = 0; at < (off_t)BUNDLE_MAX;) {
        ssize_t count = pread(fd, piece + kept, PIECE, at);
        if (count <= 0)
            return false;
        at += count;
        size_t length = kept + (size_t)count;
        if (memmem(piece, length, certificate->value, certificate->length) != NULL)
            return true;
        kept = length < certificate->length - 1 ? length : certificate->length - 1;
        memmove(piece, piece + length - kept, kept);
    }
    return false;
}

/* Appends it, unless it is there already, behind an end of line. What was only half written is cut off again. */
static int append(int fd, const struct wire_field *certificate) {
    struct stat found;
    char last = '\n';
    if (has(fd, certificate))
        return 0;
    if (fstat(fd, &found) < 0 || (found.st_size > 0 && pread(fd, &last, 1, found.st_size - 1) != 1))
        return -1;
    off_t end = found.st_size;
    if ((last == '\n' || files_write(fd, "\n", 1, end++) == 0) &&
        files_write(fd, (const char *)certificate->value, certificate->length, end) == 0)
        return 0;
    int error = errno;
    if (ftruncate(fd, found.st_size) < 0)
        return -1;
    errno = error;
    return -1;
}

static int append_all(const char *path, int fd, const struct wire_frame *frame, char *text, size_t size) {
    struct wire_reader reader = {frame->payload, frame->payload + frame->length};
    struct wire_field field;
    int error = 0;
    while (error == 0 && next_certificate(&reader, &field))
        if (append(fd, &field) < 0)
            error = fail(text, size, path);
    close(fd);
    return error;
}

static int put_sources(const struct wire_frame *frame, char *text, size_t size) {
    for (size_t i = 0; i < sizeof sources / sizeof *sources; i++) {
        struct wire_reader reader = {frame->payload, frame->payload + frame->length};
        struct wire_field field;
        struct stat found;
        if (sources[i].is_made && !files_make_directories(sources[i].path))
            return fail(text, size, sources[i].path);
        if (stat(sources[i].path, &found) < 0 && !sources[i].is_made)
            continue;
        for (int error; next_certificate(&reader, &field);)
            if ((error = put_source(sources[i].path, &field, text, size)) != 0)
                return error;
    }
    return 0;
}

static int append_to_bundles(const struct wire_frame *frame, struct wire_writer *answer, char *text, size_t size) {
    struct stat found[BUNDLES];
    size_t count = 0;
    for (size_t i = 0; i < BUNDLES; i++) {
        int fd = files_open(bundles[i], O_RDWR), error;
        if (fd < 0)
            continue; /* not there, or no file */
        bool is_known = fstat(fd, &found[count]) < 0;
        for (size_t other = 0; other < count; other++)
            is_known = is_known || (found[other].st_dev == found[count].st_dev && found[other].st_ino == found[count].st_ino);
        if (is_known) {
            close(fd);
            continue;
        }
        count++;
        if ((error = append_all(bundles[i], fd, frame, text, size)) != 0)
            return error;
        wire_put(answer, 1, bundles[i], (uint32_t)strlen(bundles[i]));
    }
    return 0;
}

int trust_add(const struct wire_frame *frame, struct wire_writer *answer, char *text, size_t size) {
    int error = check(frame, text, size);
    if (error != 0 || (error = put_sources(frame, text, size)) != 0 ||
        (error = append_to_bundles(frame, answer, text, size)) != 0)
        return error;
    if (answer->length == 0) {
        if (!files_make_directories(BUNDLE_DIRECTORY) || !files_put(BUNDLE, "", 0, 0644))
            return fail(text, size, BUNDLE);
        if ((error = append_to_bundles(frame, answer, text, size)) != 0)
            return error;
    }
    /* Debian 12's OpenSSL looks for this file and for names of hashes, and not for the bundle. */
    if (access(BUNDLE, F_OK) == 0 && access(DEBIAN_OPENSSL, F_OK) == 0 &&
        symlink(BUNDLE, DEBIAN_OPENSSL "/cert.pem") < 0 && errno != EEXIST)
        return fail(text, size, DEBIAN_OPENSSL "/cert.pem");
    return 0;
}
