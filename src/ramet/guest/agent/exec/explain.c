#include "exec/explain.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define HEAD_BYTES 256 /* as much of a script as the kernel looks at (linux/binfmts.h, BINPRM_BUF_SIZE) */
#define NESTED_MAX 5   /* interpreters of interpreters; the kernel's own limit */
#define SHOWN "%.200s"

/* The file that execvp(3) would find, usable or not. */
static bool find(const char *program, char *path, size_t size) {
    struct stat found;
    if (strchr(program, '/') != NULL)
        return (size_t)snprintf(path, size, "%s", program) < size && lstat(path, &found) == 0;
    const char *at = getenv("PATH");
    for (size_t length; at != NULL; at = at[length] == ':' ? at + length + 1 : NULL) {
        length = strcspn(at, ":");
        if ((size_t)snprintf(path, size, "%.*s%s%s", (int)length, at, length > 0 ? "/" : "", program) < size &&
            lstat(path, &found) == 0)
            return true;
    }
    return false;
}

/* The program that a file needs in order to run: a script's interpreter, a dynamic program's loader. */
static const char *interpreter_of(const char *path, const char *head, size_t length, char *name, size_t size) {
    if (length > 2 && memcmp(head, "#!", 2) == 0) {
        const char *start = head + 2 + strspn(head + 2, " \t");
        size_t end = strcspn(start, " \t\n");
        if (end == 0 || end >= size)
            return NULL;
        memcpy(name, start, end);
        name[end] = '\0';
        return "interpreter";
    }
    const Elf64_Ehdr *elf = (const Elf64_Ehdr *)(const void *)head;
    if (length < sizeof *elf || memcmp(head, ELFMAG, SELFMAG) != 0 || elf->e_ident[EI_CLASS] != ELFCLASS64)
        return NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    const char *kind = NULL;
    Elf64_Phdr part;
    for (unsigned i = 0; fd >= 0 && i < elf->e_phnum && kind == NULL; i++) {
        if (pread(fd, &part, sizeof part, (off_t)(elf->e_phoff + i * sizeof part)) != (ssize_t)sizeof part)
            break;
        if (part.p_type != PT_INTERP || part.p_filesz == 0 || part.p_filesz > size)
            continue;
        ssize_t count = pread(fd, name, part.p_filesz, (off_t)part.p_offset);
        if (count > 0) {
            name[count - 1] = '\0'; /* it is there in the file */
            kind = "loader";
        }
    }
    if (fd >= 0)
        close(fd);
    return kind;
}

static bool is_for_another_machine(const char *head, size_t length) {
#if defined(__x86_64__)
    const unsigned ours = EM_X86_64, also = EM_386;
#else
    const unsigned ours = EM_AARCH64, also = EM_ARM;
#endif
    const Elf64_Ehdr *elf = (const Elf64_Ehdr *)(const void *)head; /* e_machine lies alike in both classes */
    return length >= sizeof *elf && memcmp(head, ELFMAG, SELFMAG) == 0 && elf->e_machine != ours &&
           elf->e_machine != also;
}

static size_t read_head(const char *path, char *head) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t length = fd < 0 ? 0 : read(fd, head, HEAD_BYTES);
    if (fd >= 0)
        close(fd);
    length = length > 0 ? length : 0;
    head[length] = '\0';
    return (size_t)length;
}

/* What is wrong with `path` itself, as far as `error` has to do with it; NULL: nothing that can be seen. */
static const char *fault_of(const char *path, const struct stat *file, const char *head, size_t length, int error) {
    struct statvfs place;
    if (error == EACCES) {
        if (S_ISDIR(file->st_mode))
            return "it is a directory";
        if (!S_ISREG(file->st_mode))
            return "it isn't a regular file";
        if ((file->st_mode & 0111) == 0)
            return "it isn't executable";
        if (statvfs(path, &place) == 0 && (place.f_flag & ST_NOEXEC))
            return "its filesystem is mounted noexec";
    }
    if (error == ENOEXEC) {
        if (file->st_size == 0)
            return "it is empty";
        if (is_for_another_machine(head, length))
            return "it is a program for another kind of processor";
        if (length >= SELFMAG && memcmp(head, ELFMAG, SELFMAG) != 0 && memcmp(head, "#!", 2) != 0)
            return "it is neither a program nor a script that begins with #!";
    }
    return NULL;
}

void explain_execve(char *text, size_t size, const char *program, int error) {
    _Alignas(Elf64_Ehdr) char head[HEAD_BYTES + 1];
    char path[PATH_MAX], next[PATH_MAX];
    const char *kind = NULL;
    struct stat file;
    snprintf(text, size, SHOWN ": %s", program, strerror(error));
    if ((error != ENOENT && error != EACCES && error != ENOEXEC) || !find(program, path, sizeof path))
        return;
    for (int depth = 0; depth < NESTED_MAX; depth++) {
        if (stat(path, &file) < 0) {
            if (errno != ENOENT)
                return;
            ssize_t length = depth == 0 ? readlink(path, next, sizeof next - 1) : -1;
            if (depth == 0 && length < 0)
                return;
            next[length < 0 ? 0 : length] = '\0';
            if (depth == 0)
                snprintf(text, size, SHOWN ": it is a link to " SHOWN ", which isn't there", program, next);
            else if (path[strlen(path) - 1] == '\r')
                snprintf(text, size, SHOWN ": its %s is " SHOWN " followed by a CR: its lines end with CR LF", program,
                         kind, (path[strlen(path) - 1] = '\0', path));
            else
                snprintf(text, size, SHOWN ": its %s " SHOWN " isn't there", program, kind, path);
            return;
        }
        size_t length = S_ISREG(file.st_mode) ? read_head(path, head) : 0;
        const char *fault = fault_of(path, &file, head, length, error);
        if (fault != NULL && depth > 0)
            snprintf(text, size, SHOWN ": its %s " SHOWN ": %s (%s)", program, kind, path, strerror(error), fault);
        else if (fault != NULL)
            snprintf(text, size, SHOWN ": %s (%s)", program, strerror(error), fault);
        const char *needs = fault == NULL ? interpreter_of(path, head, length, next, sizeof next) : NULL;
        if (needs == NULL)
            return;
        kind = needs;
        strcpy(path, next);
    }
}

static const char *name_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

bool explain_init(char *text, size_t size, const char *program) {
    static const char *const inits[] = {"/sbin/init", "/usr/sbin/init", "/bin/init", "/usr/bin/init"};
    char path[PATH_MAX], real[PATH_MAX] = "";
    bool is_init = false;
    if (find(program, path, sizeof path) && realpath(path, real) != NULL)
        for (size_t i = 0; i < sizeof inits / sizeof *inits; i++)
            is_init = is_init || strcmp(path, inits[i]) == 0 || strcmp(real, inits[i]) == 0;
    bool is_systemd = strcmp(name_of(program), "systemd") == 0 || strcmp(name_of(real), "systemd") == 0;
    if (is_systemd || is_init)
        snprintf(text, size,
                 SHOWN " is %s, which has to be process 1 of its machine: here the agent is. "
                       "Run the service itself as the main process (a later --init will give it a process 1)",
                 program, is_systemd ? "systemd" : "an init");
    return is_systemd || is_init;
}
