#include "init/init.h"

#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init/console.h"
#include "init/memory.h"
#include "init/program.h"
#include "init/root.h"

#define RC_FILE "/etc/ramet/rc"

static void mount_at(const char *target, const char *type, unsigned long flags, const char *options) {
    mkdir(target, 0755);
    if (mount(type, target, type, flags, options) < 0 && errno != EBUSY) /* EBUSY: the kernel or initrd did it */
        init_say("ramet: mount %s: %s", target, strerror(errno));
}

void init_filesystems(void) {
    const unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    chmod("/", 0755); /* the kernel's rootfs begins world-writable */
    mount_at("/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    console_open();
    mount_at("/proc", "proc", safe, NULL);
    mount_at("/sys", "sysfs", safe, NULL);
    mount_at("/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666");
    memory_filesystems();
    static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"},
                                           {"/proc/self/fd/0", "/dev/stdin"},
                                           {"/proc/self/fd/1", "/dev/stdout"},
                                           {"/proc/self/fd/2", "/dev/stderr"}};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
            init_say("ramet: %s: %s", links[i][1], strerror(errno));
}

static void loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
        request.ifr_flags |= IFF_UP | IFF_RUNNING;
        if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
            init_say("ramet: lo: %s", strerror(errno));
    }
    close(fd);
}

static void take_hostname(void) {
    char name[66];
    FILE *file = fopen("/etc/hostname", "re");
    if (file == NULL)
        return;
    if (fgets(name, sizeof name, file) != NULL) {
        name[strcspn(name, "\r\n")] = '\0';
        if (name[0] != '\0' && sethostname(name, strlen(name)) < 0)
            init_say("ramet: hostname: %s", strerror(errno));
    }
    fclose(file);
}

void init_rest(void) {
    loopback_up();
    if (root_kind() != ROOT_INITRAMFS)
        return;
    take_hostname();
    if (access(RC_FILE, X_OK) == 0)
        program_run((const char *const[]){RC_FILE, NULL});
}
