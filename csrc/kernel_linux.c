/*
 * The Linux side of kernel.h: the system calls of kernel TLS (net/tls).  The structs they carry are
 * filled in abi_linux.c.
 */
#include "kernel.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "abi_linux.h"
#include "wipe.h"

int pyktls_system(void) {
    return PYKTLS_LINUX;
}

/* ---- keys ------------------------------------------------------------------------------------ */

int pyktls_linux_set_keys(int fd, int direction, uint16_t version, uint16_t cipher_type,
                          const void *key, size_t key_length, const unsigned char iv[12],
                          uint64_t rec_seq) {
    unsigned char info[PYKTLS_CRYPTO_INFO_MAX];
    int size = pyktls_linux_pack(info, sizeof(info), version, cipher_type, key, key_length, iv,
                                 rec_seq);
    if (size < 0) {
        return size;
    }
    int result = setsockopt(fd, SOL_TLS, direction, info, (socklen_t)size) < 0 ? -errno : 0;
    pyktls_wipe(info, sizeof(info));
    return result;
}

/* ---- records --------------------------------------------------------------------------------- */

union control {
    struct cmsghdr header; /* for the alignment */
    unsigned char space[CMSG_SPACE(1)];
};

/* On a socket without receiving keys TCP's own messages may come, SO_TIMESTAMP's for instance. */
#define CONTROL_RECEIVED (CMSG_SPACE(1) + 256)

ssize_t pyktls_recv_record_vector(int fd, const struct iovec *iov, size_t iov_count, int flags,
                                  int *record_type, int *msg_flags) {
    _Alignas(struct cmsghdr) unsigned char control[CONTROL_RECEIVED];
    struct msghdr message;
    memset(&message, 0, sizeof(message));
    message.msg_iov = (struct iovec *)iov;
    message.msg_iovlen = iov_count;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);

    *record_type = PYKTLS_NO_RECORD_TYPE;
    *msg_flags = 0;
    ssize_t received = recvmsg(fd, &message, flags);
    if (received < 0) {
        return -errno;
    }
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    while (header != NULL && !(header->cmsg_level == SOL_TLS &&
                               header->cmsg_type == TLS_GET_RECORD_TYPE &&
                               header->cmsg_len >= CMSG_LEN(1))) {
        header = CMSG_NXTHDR(&message, header);
    }
    if (header != NULL) {
        *record_type = *CMSG_DATA(header);
    } else if (message.msg_flags & MSG_CTRUNC) {
        return -EPROTO; /* the type of what came is lost, so nobody may use it */
    }
    *msg_flags = message.msg_flags;
    return received;
}

ssize_t pyktls_recv_record(int fd, void *buffer, size_t size, int flags, int *record_type,
                           int *msg_flags) {
    const struct iovec iov = {buffer, size};
    return pyktls_recv_record_vector(fd, &iov, 1, flags, record_type, msg_flags);
}

ssize_t pyktls_send_record(int fd, const struct iovec *iov, size_t iov_count, int flags,
                           int record_type) {
    union control control;
    struct msghdr message;
    memset(&message, 0, sizeof(message));
    message.msg_iov = (struct iovec *)iov;
    message.msg_iovlen = iov_count;
    if (record_type != PYKTLS_NO_RECORD_TYPE) {
        memset(&control, 0, sizeof(control));
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_TLS;
        header->cmsg_type = TLS_SET_RECORD_TYPE;
        header->cmsg_len = CMSG_LEN(1);
        *CMSG_DATA(header) = (unsigned char)record_type;
    }
    ssize_t sent = sendmsg(fd, &message, flags);
    return sent < 0 ? -errno : sent;
}
