/*
 * The FreeBSD side of kernel.h: the system calls of kernel TLS (sys/kern/uipc_ktls.c).
 *
 * Differences from Linux that show here: options and control messages are at level IPPROTO_TCP;
 * the control message of a received record is a struct, and the kernel leaves it out altogether
 * where the control buffer lacks room for its padding; only the first part of a record has one.
 */
#include "kernel.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysctl.h>

#include "abi_freebsd.h"
#include "wipe.h"

int pyktls_system(void) {
    return PYKTLS_FREEBSD;
}

/* ---- keys and modes -------------------------------------------------------------------------- */

int pyktls_freebsd_set_keys(int fd, int option, int version, int cipher_algorithm, const void *key,
                            size_t key_length, const void *iv, size_t iv_length, int auth_algorithm,
                            const void *auth_key, size_t auth_key_length, uint64_t rec_seq) {
    struct tls_enable enable;
    int result =
        pyktls_freebsd_fill(&enable, version, cipher_algorithm, key, key_length, iv, iv_length,
                            auth_algorithm, auth_key, auth_key_length, rec_seq);
    if (result == 0 && setsockopt(fd, IPPROTO_TCP, option, &enable, sizeof(enable)) < 0) {
        result = -errno;
    }
    pyktls_wipe(&enable, sizeof(enable));
    return result;
}

int pyktls_freebsd_get_mode(int fd, int option) {
    int mode = TCP_TLS_MODE_NONE;
    socklen_t size = sizeof(mode);
    return getsockopt(fd, IPPROTO_TCP, option, &mode, &size) < 0 ? -errno : mode;
}

int pyktls_freebsd_set_tx_mode(int fd, int mode) {
    return setsockopt(fd, IPPROTO_TCP, TCP_TXTLS_MODE, &mode, sizeof(mode)) < 0 ? -errno : 0;
}

/* ---- records --------------------------------------------------------------------------------- */

union receive_control {
    struct cmsghdr header; /* for the alignment */
    /* cppcheck-suppress unusedStructMember ; for the size */
    unsigned char space[CMSG_SPACE(sizeof(struct tls_get_record))];
};

static ssize_t receive(int fd, const struct iovec *iov, size_t iov_count, int flags,
                       int *record_type, int *version, int *length, int *msg_flags) {
    union receive_control control;
    struct msghdr message;
    if (iov_count > INT_MAX) {
        return -EMSGSIZE;
    }
    /* The kernel would say EINVAL, as it does to a record that cannot be right. */
    if (flags & MSG_OOB) {
        return -EOPNOTSUPP;
    }
    memset(&message, 0, sizeof(message));
    message.msg_iov = (struct iovec *)iov;
    message.msg_iovlen = (__typeof__(message.msg_iovlen))iov_count; /* int */
    message.msg_control = &control;
    message.msg_controllen = sizeof(control);

    *record_type = PYKTLS_NO_RECORD_TYPE;
    *version = -1;
    *length = -1;
    *msg_flags = 0;
    ssize_t received = recvmsg(fd, &message, flags);
    if (received < 0) {
        return -errno;
    }
    if (message.msg_flags & MSG_CTRUNC) {
        return -EPROTO; /* the type of what came is lost, so nobody may use it */
    }
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header != NULL && header->cmsg_level == IPPROTO_TCP && header->cmsg_type == TLS_GET_RECORD &&
        header->cmsg_len >= CMSG_LEN(sizeof(struct tls_get_record))) {
        struct tls_get_record record;
        memcpy(&record, CMSG_DATA(header), sizeof(record));
        unsigned char big_endian[2];
        memcpy(big_endian, &record.tls_length, sizeof(big_endian));
        *record_type = record.tls_type;
        *version = record.tls_vmajor << 8 | record.tls_vminor;
        *length = big_endian[0] << 8 | big_endian[1];
    }
    *msg_flags = message.msg_flags;
    return received;
}

ssize_t pyktls_freebsd_recv(int fd, void *buffer, size_t size, int flags, int *record_type,
                            int *version, int *length, int *msg_flags) {
    const struct iovec iov = {buffer, size};
    return receive(fd, &iov, 1, flags, record_type, version, length, msg_flags);
}

ssize_t pyktls_recv_record_vector(int fd, const struct iovec *iov, size_t iov_count, int flags,
                                  int *record_type, int *msg_flags) {
    int version;
    int length;
    return receive(fd, iov, iov_count, flags, record_type, &version, &length, msg_flags);
}

ssize_t pyktls_recv_record(int fd, void *buffer, size_t size, int flags, int *record_type,
                           int *msg_flags) {
    const struct iovec iov = {buffer, size};
    return pyktls_recv_record_vector(fd, &iov, 1, flags, record_type, msg_flags);
}

union send_control {
    struct cmsghdr header; /* for the alignment */
    /* cppcheck-suppress unusedStructMember ; for the size */
    unsigned char space[CMSG_SPACE(1)];
};

static int is_empty(const struct iovec *iov, size_t iov_count) {
    for (size_t i = 0; i < iov_count; i++) {
        if (iov[i].iov_len > 0) {
            return 0;
        }
    }
    return 1;
}

ssize_t pyktls_send_record(int fd, const struct iovec *iov, size_t iov_count, int flags,
                           int record_type) {
    union send_control control;
    struct msghdr message;
    if (iov_count > INT_MAX) {
        return -EMSGSIZE;
    }
    /*
     * Of urgent data the kernel would mark a byte of the encrypted record, which TCP of the other
     * end then takes out of the stream.  Linux refuses it with the same error.
     */
    if (flags & MSG_OOB) {
        return -EOPNOTSUPP;
    }
    /* The kernel, which sends no empty record, says EINVAL to that; Linux takes it. */
    if (record_type == PYKTLS_NO_RECORD_TYPE && is_empty(iov, iov_count)) {
        return 0;
    }
    memset(&message, 0, sizeof(message));
    message.msg_iov = (struct iovec *)iov;
    message.msg_iovlen = (__typeof__(message.msg_iovlen))iov_count; /* int */
    if (record_type != PYKTLS_NO_RECORD_TYPE) {
        /*
         * The kernel would take 0, and in TLS 1.3 that is lost: the receiver strips zeros from the
         * end of the record and takes the last other byte for the type.
         */
        if (record_type <= 0 || record_type > UINT8_MAX) {
            return -EINVAL;
        }
        memset(&control, 0, sizeof(control));
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = IPPROTO_TCP;
        header->cmsg_type = TLS_SET_RECORD_TYPE;
        header->cmsg_len = (socklen_t)CMSG_LEN(1);
        *CMSG_DATA(header) = (unsigned char)record_type;
    }
    ssize_t sent = sendmsg(fd, &message, flags);
    return sent < 0 ? -errno : sent;
}

int pyktls_freebsd_sendfile(int file, int fd, int64_t offset, size_t count,
                            const struct iovec *headers, size_t header_count,
                            const struct iovec *trailers, size_t trailer_count, int flags,
                            int64_t *sent) {
    struct sf_hdtr around;
    off_t bytes = 0;
    *sent = 0;
    if (header_count > INT_MAX || trailer_count > INT_MAX) {
        return -EMSGSIZE;
    }
    memset(&around, 0, sizeof(around));
    if (header_count > 0) {
        around.headers = (struct iovec *)headers;
        around.hdr_cnt = (int)header_count;
    }
    /* Of trailers without a byte the kernel would make an empty record, which it then refuses. */
    if (!is_empty(trailers, trailer_count)) {
        around.trailers = (struct iovec *)trailers;
        around.trl_cnt = (int)trailer_count;
    }
    int wanted = around.headers != NULL || around.trailers != NULL;
    int result = sendfile(file, fd, offset, count, wanted ? &around : NULL, &bytes, flags);
    int error = errno;
    *sent = bytes;
    return result < 0 ? -error : 0;
}

/* ---- gates and statistics -------------------------------------------------------------------- */

int pyktls_freebsd_sysctl(const char *name, void *value, size_t *size) {
    return sysctlbyname(name, value, size, NULL, 0) < 0 ? -errno : 0;
}
