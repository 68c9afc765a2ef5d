/* The little of the kernel's ABI that a C library without kernel headers lacks. Each from the uapi header named. */
#ifndef RAMET_KERNEL_H
#define RAMET_KERNEL_H

#include <stdint.h>
#include <sys/ioctl.h>

/* linux/random.h: mix into the generator and credit; reseed the generator that getrandom(2) draws from. */
struct kernel_rand_pool_info {
    int entropy_count; /* bits */
    int buf_size;      /* bytes */
    uint32_t buf[];
};
#define KERNEL_RNDADDENTROPY _IOW('R', 0x03, int[2])
#define KERNEL_RNDRESEEDCRNG _IO('R', 0x07)

/* linux/netlink.h */
struct kernel_sockaddr_nl {
    unsigned short nl_family;
    unsigned short nl_pad;
    uint32_t nl_pid;
    uint32_t nl_groups;
};
#define KERNEL_NETLINK_ROUTE 0
#define KERNEL_NETLINK_KOBJECT_UEVENT 15

/* linux/rtnetlink.h: groups of NETLINK_ROUTE that hear of addresses that come and go */
#define KERNEL_RTMGRP_IPV4_IFADDR 0x10u
#define KERNEL_RTMGRP_IPV6_IFADDR 0x100u

/* linux/vm_sockets.h */
struct kernel_sockaddr_vm {
    unsigned short svm_family;
    unsigned short svm_reserved1;
    uint32_t svm_port;
    uint32_t svm_cid;
    uint8_t svm_flags;
    uint8_t svm_zero[3];
};
#define KERNEL_VMADDR_CID_ANY UINT32_MAX
#define KERNEL_VMADDR_CID_HOST 2u

#endif
