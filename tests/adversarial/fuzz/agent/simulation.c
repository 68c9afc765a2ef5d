/* The simulated kernel: descriptors, pipes, ports and files. */
#include "simulated.h"

#include "loop/kernel.h"
#include "simulation.h"

enum { FIRST_FD = 1000, FDS = 2048, PIPES = 1024, PORTS = 4, FILES = 32, FILE_MAX = 20000, IN_MAX = (1 << 18) / SCALE };
enum { PIPE_CAPACITY = 65536 / SCALE, MESSAGE_MAX = 512 };

enum kind { FREE, PORT, READER, WRITER, TEXT, DEVICE };

struct descriptor {
    enum kind kind;
    bool agents; /* of a pipe: the end that stays with the agent */
    int object;
    size_t at;
};

struct pipe {
    bool reader, writer;
    bool inherited; /* its far end is a command's stdio too */
    uint32_t length;
    uint8_t value; /* what the octets are, unless it is a message */
    uint32_t message_length;
    uint8_t message[MESSAGE_MAX];
};

struct file {
    char path[96];
    ino_t inode;
    size_t length;
    char text[FILE_MAX];
};

struct sim_port {
    int index; /* what the agent watches it as; -1: not */
    bool hung_up;
    uint32_t room;
    size_t at, length;
    uint8_t data[IN_MAX];
};

static struct descriptor descriptors[FDS];
static int descriptors_used;
static struct pipe pipes[PIPES];
static int pipes_used;
static struct sim_port ports[PORTS];
static int waiting_port = -1;
static struct kernel_sockaddr_vm waiting_from;
static struct file files[FILES];
static ino_t last_inode;
static unsigned fail_in;
static int fail_with;

void (*sim_port_take)(int number, const uint8_t *data, size_t length);

bool sim_fails(void) {
    if (fail_in == 0 || --fail_in > 0)
        return false;
    errno = fail_with;
    return true;
}

void sim_begin(void) {
    fail_in = 0;
    sim_machine_begin();
}

void sim_end(void) {
    sim_machine_end();
    for (int i = 0; i < descriptors_used; i++)
        descriptors[i].kind = FREE;
    for (int i = 0; i < PORTS; i++)
        ports[i].index = -1;
    descriptors_used = pipes_used = 0;
    for (int i = 0; i < FILES; i++)
        files[i].path[0] = '\0';
}

void sim_fail(unsigned nth, int error) {
    fail_in = nth;
    fail_with = error;
}

/* --- descriptors ----------------------------------------------------------------------------------------- */

static int allocate(enum kind kind, int object) {
    int index = 0;
    while (index < descriptors_used && descriptors[index].kind != FREE)
        index++;
    if (index == FDS) {
        errno = EMFILE;
        return -1;
    }
    if (index == descriptors_used)
        descriptors_used++;
    descriptors[index] = (struct descriptor){.kind = kind, .object = object};
    return FIRST_FD + index;
}

static struct descriptor *descriptor_of(int fd) {
    int index = fd - FIRST_FD;
    if (index < 0 || index >= descriptors_used || descriptors[index].kind == FREE)
        abort(); /* the agent uses a descriptor that it doesn't have */
    return &descriptors[index];
}

int sim_close(int fd) {
    struct descriptor *descriptor = descriptor_of(fd);
    struct pipe *pipe = &pipes[descriptor->object];
    if (descriptor->kind == READER)
        pipe->reader = pipe->inherited && !descriptor->agents;
    else if (descriptor->kind == WRITER)
        pipe->writer = pipe->inherited && !descriptor->agents;
    if (descriptor->kind == PORT)
        ports[descriptor->object].index = -1;
    descriptor->kind = FREE;
    return 0;
}

int sim_fcntl(int fd, int command, ...) {
    (void)command;
    descriptor_of(fd);
    return 0;
}

int sim_epoll_ctl(int set, int operation, int fd, struct epoll_event *event) {
    (void)set, (void)operation;
    struct descriptor *descriptor = descriptor_of(fd);
    if (sim_fails())
        return -1;
    if (descriptor->kind == PORT)
        ports[descriptor->object].index = (int)(uint32_t)event->data.u64;
    return 0;
}

ssize_t sim_read(int fd, void *data, size_t count) {
    struct descriptor *descriptor = descriptor_of(fd);
    if (sim_fails())
        return -1;
    if (descriptor->kind == PORT) {
        struct sim_port *port = &ports[descriptor->object];
        size_t left = port->length - port->at;
        if (left == 0) {
            bool ended = port->hung_up;
            port->hung_up = false;
            errno = EAGAIN;
            return ended ? 0 : -1;
        }
        size_t taken = left < count ? left : count;
        memcpy(data, port->data + port->at, taken);
        port->at += taken;
        return (ssize_t)taken;
    }
    if (descriptor->kind == TEXT) {
        struct file *file = &files[descriptor->object];
        size_t left = descriptor->at < file->length ? file->length - descriptor->at : 0;
        size_t taken = left < count ? left : count;
        memcpy(data, file->text + descriptor->at, taken);
        descriptor->at += taken;
        return (ssize_t)taken;
    }
    if (descriptor->kind != READER)
        abort();
    struct pipe *pipe = &pipes[descriptor->object];
    if (pipe->message_length > 0) {
        size_t taken = pipe->message_length < count ? pipe->message_length : count;
        memcpy(data, pipe->message, taken);
        pipe->message_length = 0;
        return (ssize_t)taken;
    }
    if (pipe->length == 0) {
        errno = EAGAIN;
        return pipe->writer ? -1 : 0;
    }
    size_t taken = pipe->length < count ? pipe->length : count;
    memset(data, pipe->value, taken);
    pipe->length -= (uint32_t)taken;
    return (ssize_t)taken;
}

ssize_t sim_write(int fd, const void *data, size_t count) {
    struct descriptor *descriptor = descriptor_of(fd);
    if (sim_fails())
        return -1;
    if (descriptor->kind == PORT) {
        struct sim_port *port = &ports[descriptor->object];
        if (port->room == 0) {
            errno = EAGAIN;
            return -1;
        }
        size_t taken = port->room < count ? port->room : count;
        if (port->room != UINT32_MAX)
            port->room -= (uint32_t)taken;
        sim_port_take(descriptor->object, data, taken);
        return (ssize_t)taken;
    }
    if (descriptor->kind == TEXT) {
        struct file *file = &files[descriptor->object];
        size_t left = FILE_MAX - descriptor->at, taken = left < count ? left : count;
        memcpy(file->text + descriptor->at, data, taken);
        file->length = descriptor->at += taken;
        return (ssize_t)taken;
    }
    if (descriptor->kind != WRITER)
        abort();
    struct pipe *pipe = &pipes[descriptor->object];
    if (!pipe->reader) {
        errno = EPIPE;
        return -1;
    }
    if (sim_in_child) { /* the report of a start that failed; of other pipes only the number of octets is kept */
        if (count > MESSAGE_MAX)
            abort();
        memcpy(pipe->message, data, count);
        pipe->message_length = (uint32_t)count;
        return (ssize_t)count;
    }
    size_t room = PIPE_CAPACITY - pipe->length, taken = room < count ? room : count;
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < taken; i++)
        sum ^= ((const uint8_t *)data)[i];
    (void)sum;
    if (taken == 0) {
        errno = EAGAIN;
        return -1;
    }
    pipe->length += (uint32_t)taken;
    return (ssize_t)taken;
}

int sim_pipe2(int fds[2], int flags) {
    (void)flags;
    if (sim_fails())
        return -1;
    int index = 0;
    while (index < pipes_used && (pipes[index].reader || pipes[index].writer))
        index++;
    if (index == PIPES) {
        errno = ENFILE;
        return -1;
    }
    int reader = allocate(READER, index);
    if (reader < 0)
        return -1;
    int writer = allocate(WRITER, index);
    if (writer < 0) {
        int error = errno;
        descriptor_of(reader)->kind = FREE;
        errno = error;
        return -1;
    }
    if (index == pipes_used)
        pipes_used++;
    pipes[index].reader = pipes[index].writer = true;
    pipes[index].inherited = false;
    pipes[index].length = pipes[index].message_length = 0;
    fds[0] = reader;
    fds[1] = writer;
    return 0;
}

static void list_interfaces(struct ifconf *list) {
    static const struct {
        const char *name;
        uint8_t address[4];
    } interfaces[] = {{"lo", {127, 0, 0, 1}}, {"eth0", {10, 0, 0, 1}}};
    list->ifc_len = sizeof interfaces / sizeof *interfaces * sizeof(struct ifreq);
    for (size_t i = 0; i < sizeof interfaces / sizeof *interfaces; i++) {
        struct sockaddr_in address = {.sin_family = AF_INET};
        memcpy(&address.sin_addr, interfaces[i].address, sizeof address.sin_addr);
        memset(&list->ifc_req[i], 0, sizeof(struct ifreq));
        strcpy(list->ifc_req[i].ifr_name, interfaces[i].name);
        memcpy(&list->ifc_req[i].ifr_addr, &address, sizeof address);
    }
}

int sim_ioctl(int fd, unsigned long request, ...) {
    va_list arguments;
    struct descriptor *descriptor = descriptor_of(fd);
    if (sim_fails())
        return -1;
    if (request == FIONREAD) {
        va_start(arguments, request);
        *va_arg(arguments, int *) = (int)pipes[descriptor->object].length;
        va_end(arguments);
    } else if (request == SIOCGIFCONF) {
        va_start(arguments, request);
        list_interfaces(va_arg(arguments, struct ifconf *));
        va_end(arguments);
    }
    return 0;
}

/* In the child a pipe's end becomes a command's stdio; the end that the agent keeps is the other one. */
int sim_dup2(int from, int to) {
    struct descriptor *descriptor = descriptor_of(from);
    if (sim_fails())
        return -1;
    if (descriptor->kind == READER || descriptor->kind == WRITER)
        pipes[descriptor->object].inherited = true;
    for (int i = 0; i < descriptors_used; i++)
        if (descriptors[i].kind != FREE && descriptors[i].object == descriptor->object)
            descriptors[i].agents = &descriptors[i] != descriptor;
    return to;
}

/* --- the commands' side of pipes ------------------------------------------------------------------------- */

static struct pipe *pipe_of(int agents_fd) { return &pipes[descriptor_of(agents_fd)->object]; }

void sim_pipe_fill(int agents_fd, uint32_t octets, uint8_t value) {
    struct pipe *pipe = pipe_of(agents_fd);
    if (!pipe->writer)
        return;
    pipe->value = value;
    pipe->length = octets < PIPE_CAPACITY - pipe->length ? pipe->length + octets : PIPE_CAPACITY;
}

void sim_pipe_drain(int agents_fd, uint32_t octets) {
    struct pipe *pipe = pipe_of(agents_fd);
    pipe->length -= octets < pipe->length ? octets : pipe->length;
}

void sim_pipe_abandon(int agents_fd) {
    struct pipe *pipe = pipe_of(agents_fd);
    if (descriptor_of(agents_fd)->kind == READER)
        pipe->writer = false;
    else
        pipe->reader = false;
}

/* --- ports ----------------------------------------------------------------------------------------------- */

void sim_port_connect(int number, const struct kernel_sockaddr_vm *from) {
    struct sim_port *port = &ports[number];
    port->index = -1;
    port->hung_up = false;
    port->room = UINT32_MAX;
    port->at = port->length = 0;
    waiting_port = number;
    waiting_from = *from;
}

int sim_accept4(int listener, struct sockaddr *address, socklen_t *length, int flags) {
    (void)listener, (void)flags;
    if (*length < sizeof waiting_from)
        abort();
    memcpy(address, &waiting_from, sizeof waiting_from);
    int number = waiting_port;
    waiting_port = -1;
    errno = EAGAIN;
    return number < 0 ? -1 : allocate(PORT, number);
}

void sim_port_deliver(int number, const uint8_t *data, size_t length) {
    struct sim_port *port = &ports[number];
    if (port->at == port->length)
        port->at = port->length = 0;
    if (length > IN_MAX - port->length)
        length = IN_MAX - port->length;
    memcpy(port->data + port->length, data, length);
    port->length += length;
}

void sim_port_hang_up(int number) { ports[number].hung_up = true; }

int sim_port_index(int number) { return ports[number].index; }

void sim_port_room(int number, uint32_t octets) { ports[number].room = octets; }

/* --- files ----------------------------------------------------------------------------------------------- */

static struct file *file_of(const char *path, bool make) {
    struct file *free = NULL;
    for (int i = 0; i < FILES; i++) {
        if (strcmp(files[i].path, path) == 0)
            return &files[i];
        if (files[i].path[0] == '\0')
            free = &files[i];
    }
    if (!make || free == NULL || strlen(path) >= sizeof free->path)
        return NULL;
    strcpy(free->path, path);
    free->inode = ++last_inode;
    free->length = 0;
    return free;
}

void sim_put_file(const char *path, const uint8_t *text, size_t length) {
    struct file *file = file_of(path, true);
    if (file == NULL)
        return;
    file->length = length < FILE_MAX ? length : FILE_MAX;
    memcpy(file->text, text, file->length);
}

int sim_open(const char *path, int flags, ...) {
    if (sim_fails())
        return -1;
    if (strncmp(path, "/dev/", 5) == 0)
        return allocate(DEVICE, 0);
    struct file *file = file_of(path, flags & O_CREAT);
    if (file == NULL) {
        errno = flags & O_CREAT ? ENOSPC : ENOENT;
        return -1;
    }
    if (flags & O_TRUNC)
        file->length = 0;
    return allocate(TEXT, (int)(file - files));
}

int sim_rename(const char *from, const char *to) {
    struct file *file = file_of(from, false), *old = file_of(to, false);
    if (sim_fails())
        return -1;
    if (file == NULL || strlen(to) >= sizeof file->path) {
        errno = ENOENT;
        return -1;
    }
    if (old != NULL)
        old->path[0] = '\0';
    strcpy(file->path, to);
    return 0;
}

int sim_unlink(const char *path) {
    struct file *file = file_of(path, false);
    if (file != NULL)
        file->path[0] = '\0';
    return 0;
}

int sim_mkdir(const char *path, mode_t mode) {
    (void)path, (void)mode;
    return sim_fails() ? -1 : 0;
}

ssize_t sim_pread(int fd, void *data, size_t count, off_t at) {
    descriptor_of(fd)->at = (size_t)at;
    return sim_read(fd, data, count);
}

ssize_t sim_pwrite(int fd, const void *data, size_t count, off_t at) {
    struct descriptor *descriptor = descriptor_of(fd);
    size_t had = files[descriptor->object].length;
    descriptor->at = (size_t)at;
    ssize_t taken = sim_write(fd, data, count);
    if (had > files[descriptor->object].length)
        files[descriptor->object].length = had;
    return taken;
}

int sim_ftruncate(int fd, off_t length) {
    struct descriptor *descriptor = descriptor_of(fd);
    if (sim_fails())
        return -1;
    if (descriptor->kind != TEXT || (size_t)length > files[descriptor->object].length)
        abort(); /* the agent only ever cuts */
    files[descriptor->object].length = (size_t)length;
    return 0;
}

static int describe(const struct file *file, struct stat *found) {
    if (sim_fails())
        return -1;
    if (file == NULL) {
        errno = ENOENT;
        return -1;
    }
    *found = (struct stat){.st_ino = file->inode, .st_mode = S_IFREG | 0644, .st_nlink = 1, .st_size = (off_t)file->length};
    return 0;
}

int sim_lstat(const char *path, struct stat *found) { return describe(file_of(path, false), found); }

int sim_fstat(int fd, struct stat *found) {
    if (fd < 3) { /* a command's own: pipes, mostly */
        *found = (struct stat){.st_mode = S_IFIFO | 0600};
        return 0;
    }
    return describe(&files[descriptor_of(fd)->object], found);
}

int sim_access(const char *path, int mode) {
    (void)mode;
    errno = ENOENT;
    return sim_fails() || file_of(path, false) == NULL ? -1 : 0;
}

int sim_symlink(const char *target, const char *path) {
    struct file *file = file_of(target, false);
    (void)path;
    return sim_fails() || file == NULL ? -1 : 0;
}

int sim_socket(int family, int type, int protocol) {
    (void)family, (void)type, (void)protocol;
    return sim_fails() ? -1 : allocate(DEVICE, 0);
}
