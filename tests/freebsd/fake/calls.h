/*
 * Put in front of every C file of the fake build: FreeBSD's system calls, as far as pyktls makes
 * them, end in a table of functions that the tests fill in Python (kernel.py).
 *
 * What does not concern kernel TLS goes to the real call.  Control messages are taken apart and put
 * together here, with the rules of FreeBSD: for sending only the type of the first one counts; for
 * receiving one that does not fit with its padding is left out altogether.
 */
#ifndef FAKE_CALLS_H
#define FAKE_CALLS_H

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

struct sf_hdtr {
    struct iovec *headers;
    int hdr_cnt;
    struct iovec *trailers;
    int trl_cnt;
};

/*
 * Each returns -errno.  A record_type of -1 is "no control message".  `raised` is for what the handler
 * of a signal has raised during a call: it comes out of the handler of SIGUSR2, once that is over.
 */
struct fake_calls {
    int (*set_option)(int fd, int option, const void *value, unsigned size);
    int (*get_option)(int fd, int option, void *value, unsigned *size);
    int64_t (*receive)(int fd, void *buffer, size_t size, int flags, unsigned char *record,
                       int *has_record, int *msg_flags);
    int64_t (*transmit)(int fd, const struct iovec *iov, size_t count, int flags, int record_type);
    int (*send_file)(int file, int fd, int64_t offset, size_t count, const struct iovec *headers,
                     int header_count, const struct iovec *trailers, int trailer_count,
                     int64_t *sent);
    int (*read_sysctl)(const char *name, void *value, size_t *size);
    int (*wait_for)(int fd, short events, int timeout);
    int raised;
};
extern struct fake_calls fake_calls;

static inline int64_t fake_result(int64_t result) {
    if (fake_calls.raised) {
        fake_calls.raised = 0;
        raise(SIGUSR2);
    }
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

static inline int fake_is_ours(int level, int option) {
    return level == IPPROTO_TCP && option >= 39 && option <= 42;
}

static inline int fake_is_linuxs(int level, int option) {
    return level == 282 || (level == IPPROTO_TCP && option == 31);
}

static inline int fake_setsockopt(int fd, int level, int option, const void *value, unsigned size) {
    if (fake_is_linuxs(level, option)) {
        return (int)fake_result(-ENOPROTOOPT);
    }
    return fake_is_ours(level, option)
               ? (int)fake_result(fake_calls.set_option(fd, option, value, size))
               : setsockopt(fd, level, option, value, size);
}

static inline int fake_getsockopt(int fd, int level, int option, void *value, unsigned *size) {
    if (fake_is_linuxs(level, option)) {
        return (int)fake_result(-ENOPROTOOPT);
    }
    return fake_is_ours(level, option) || (level == SOL_SOCKET && option == SO_ERROR)
               ? (int)fake_result(fake_calls.get_option(fd, option, value, size))
               : getsockopt(fd, level, option, value, size);
}

#define FAKE_RECORD_SIZE 6 /* struct tls_get_record */

static inline ssize_t fake_recvmsg(int fd, struct msghdr *message, int flags) {
    unsigned char record[FAKE_RECORD_SIZE];
    int has_record = 0;
    message->msg_flags = 0;
    size_t size = 0, done = 0;
    for (size_t i = 0; i < (size_t)message->msg_iovlen; i++) {
        size += message->msg_iov[i].iov_len;
    }
    unsigned char *whole = malloc(size + 1);
    if (whole == NULL) {
        return (ssize_t)fake_result(-ENOMEM);
    }
    int64_t received = fake_calls.receive(fd, whole, size, flags, record, &has_record,
                                          &message->msg_flags);
    for (size_t i = 0; received > 0 && done < (size_t)received; i++) {
        size_t left = (size_t)received - done;
        size_t part = left < message->msg_iov[i].iov_len ? left : message->msg_iov[i].iov_len;
        memcpy(message->msg_iov[i].iov_base, whole + done, part);
        done += part;
    }
    free(whole);
    size_t room = message->msg_control == NULL ? 0 : message->msg_controllen;
    message->msg_controllen = 0;
    if (received >= 0 && has_record && room >= CMSG_SPACE(FAKE_RECORD_SIZE)) {
        message->msg_controllen = CMSG_SPACE(FAKE_RECORD_SIZE);
        struct cmsghdr *header = CMSG_FIRSTHDR(message);
        header->cmsg_level = IPPROTO_TCP;
        header->cmsg_type = 2;
        header->cmsg_len = CMSG_LEN(FAKE_RECORD_SIZE);
        memcpy(CMSG_DATA(header), record, sizeof(record));
    } else if (received >= 0 && has_record && room > 0) {
        message->msg_flags |= MSG_CTRUNC;
    }
    return (ssize_t)fake_result(received);
}

static inline ssize_t fake_sendmsg(int fd, const struct msghdr *message, int flags) {
    int record_type = -1;
    const struct cmsghdr *header = CMSG_FIRSTHDR(message);
    if (header != NULL) {
        if (header->cmsg_type != 1) {
            return (ssize_t)fake_result(-EINVAL);
        }
        record_type = *CMSG_DATA(header);
    }
    return (ssize_t)fake_result(fake_calls.transmit(fd, message->msg_iov, (size_t)message->msg_iovlen,
                                                    flags, record_type));
}

static inline int fake_sendfile(int file, int fd, off_t offset, size_t count,
                                struct sf_hdtr *around, off_t *sbytes, int flags) {
    static const struct sf_hdtr none;
    const struct sf_hdtr *use = around == NULL ? &none : around;
    int64_t sent = 0;
    (void)flags;
    int result = fake_calls.send_file(file, fd, offset, count, use->headers, use->hdr_cnt,
                                      use->trailers, use->trl_cnt, &sent);
    *sbytes = sent;
    return (int)fake_result(result);
}

static inline int fake_sysctlbyname(const char *name, void *value, size_t *size, const void *to,
                                    size_t to_size) {
    (void)to, (void)to_size;
    return (int)fake_result(fake_calls.read_sysctl(name, value, size));
}

/* pyktls waits for one descriptor at a time, or for none: that is a pause. */
static inline int fake_poll(struct pollfd *fds, nfds_t count, int timeout) {
    if (count == 0) {
        return poll(fds, count, timeout);
    }
    int64_t ready = fake_result(fake_calls.wait_for(fds->fd, fds->events, timeout));
    fds->revents = (short)(ready > 0 ? ready : 0);
    return ready > 0 ? 1 : (int)ready;
}

#define setsockopt(...) fake_setsockopt(__VA_ARGS__)
#define getsockopt(...) fake_getsockopt(__VA_ARGS__)
#define recvmsg(...) fake_recvmsg(__VA_ARGS__)
#define sendmsg(...) fake_sendmsg(__VA_ARGS__)
#define sendfile(...) fake_sendfile(__VA_ARGS__)
#define sysctlbyname(...) fake_sysctlbyname(__VA_ARGS__)
#define poll(...) fake_poll(__VA_ARGS__)

#endif
